"""The kinds of engine that there are, and how a described engine becomes a connected one."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import httpx2

from backends.base import Backend, BackendSpec
from backends.http import Endpoint
from backends.openai import OpenAIBackend
from backends.tgi import TgiBackend
from backends.vllm import StaticBackend, VllmBackend

KINDS: Mapping[str, Callable[[Endpoint], Backend]] = MappingProxyType(
    {"vllm": VllmBackend, "tgi": TgiBackend, "openai": OpenAIBackend, "static": StaticBackend}
)


def connect(spec: BackendSpec, transport: httpx2.AsyncBaseTransport, timeout_s: float) -> Backend:
    """Make the adapter for an engine; nothing is sent yet.

    Args:
        spec: the engine as its operator describes it.
        transport: what carries the requests; it stays its owner's to close.
        timeout_s: how long the engine may take for each page that a scrape reads.

    Raises:
        ValueError: an unknown kind, a URL that is not one, or a key that no header can carry.
    """
    kind = KINDS.get(spec.kind)
    if kind is None:
        raise ValueError(f"backend {spec.name!r}: unknown kind {spec.kind!r}, known are {', '.join(KINDS)}")
    _check_url(spec)
    if spec.api_key is not None and not (spec.api_key.isascii() and spec.api_key.isprintable()):
        raise ValueError(f"backend {spec.name!r}: the API key has characters that a header cannot carry")
    return kind(Endpoint(spec, transport, timeout_s))


def _check_url(spec: BackendSpec) -> None:
    try:
        url = httpx2.URL(spec.url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"backend {spec.name!r}: {error}") from error
    if url.userinfo:
        raise ValueError(f"backend {spec.name!r}: the URL holds a password, which belongs in api_key")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"backend {spec.name!r}: {spec.url!r} is no URL that begins in http:// or https://")
