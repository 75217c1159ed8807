"""The way to the engines: one transport for requests and looks."""

import aiohttp
import httpx2
from httpx_aiohttp.httpx2 import AiohttpTransport


def default_transport() -> httpx2.AsyncBaseTransport:
    """Return the transport to the engines: aiohttp's, with as many connections as there are requests.

    Nothing is added to a request (no compression asked for, no User-Agent), and no proxy of the environment is used.
    """

    def session() -> aiohttp.ClientSession:
        skipped = ("Accept", "Accept-Encoding", "User-Agent")
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=skipped)

    return AiohttpTransport(client=session, trust_env=False)
