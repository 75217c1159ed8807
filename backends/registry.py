"""The kinds of engine, and the function that creates an adapter."""

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
    """Return the adapter for an engine. This sends nothing.

    Args:
        spec: the operator's configuration.
        transport: sends the requests; the caller closes it.
        timeout_s: time limit for each page that a scrape reads.

    Raises:
        ValueError: the kind is unknown, the URL is not valid, or the API key cannot be sent in a header.
    """
    kind = KINDS.get(spec.kind)
    if kind is None:
        known = ", ".join(KINDS)
        raise ValueError(f"backend {spec.name!r}: kind {spec.kind!r} is unknown; use one of {known}")
    _check_url(spec)
    if spec.api_key is not None and not (spec.api_key.isascii() and spec.api_key.isprintable()):
        raise ValueError(
            f"backend {spec.name!r}: api_key has characters that an HTTP header cannot contain; use printable ASCII"
        )
    return kind(Endpoint(spec, transport, timeout_s))


def _check_url(spec: BackendSpec) -> None:
    try:
        url = httpx2.URL(spec.url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"backend {spec.name!r}: {error}") from error
    if url.userinfo:
        raise ValueError(f"backend {spec.name!r}: url contains a password; use api_key instead")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            f"backend {spec.name!r}: url {spec.url!r} is not valid; it must start with http:// or https://"
        )
