"""Magnus: a gateway in front of your own LLM engines. `gateway.server.app.create_app` connects its parts."""

from importlib.metadata import version

__version__ = version("magnus-gateway")
