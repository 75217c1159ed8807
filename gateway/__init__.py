"""Magnus: a gateway in front of your own LLM engines. `gateway.server.app.create_app` is where its parts meet."""

from importlib.metadata import version

__version__ = version("magnus-gateway")
