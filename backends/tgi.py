"""Hugging Face's Text Generation Inference, 1 to 3.

It reserves a request's input and `max_new_tokens` up front, so what it calls used is reserved. All versions have
`/info`, whose model `/v1/models` of the later ones only repeats. The first ones lack OpenAI's routes.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from backends.base import BackendSpec, BackendUnreachableError, EngineError, ModelCard, Snapshot, Translation
from backends.http import Endpoint
from backends.metrics_text import per_rank, read_samples, total
from backends.openai_api import METRICS_PATH, has_failed, is_out_of_memory, model_cards, read_error
from backends.tgi_native import CHAT_PATH, COMPLETION_PATH, translate
from backends.tgi_openai import adapt

INFO_PATH = "/info"
QUEUE_FULL_STATUS = HTTPStatus.TOO_MANY_REQUESTS  # beyond --max-concurrent-requests
INVALID_STATUS = HTTPStatus.UNPROCESSABLE_ENTITY
FAILED_STATUS = HTTPStatus.FAILED_DEPENDENCY  # its shards failed, not the request

OPENAI_ROUTES = {CHAT_PATH: (1, 4), COMPLETION_PATH: (2, 0)}
"""Since which version it has them."""

RUNNING = "tgi_batch_current_size"
WAITING = "tgi_queue_size"
KV_USED = "tgi_batch_current_max_tokens"
KV_CAPACITY = "tgi_batch_max_total_tokens"

_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})")
_FAMILIES = (RUNNING, WAITING, KV_USED, KV_CAPACITY)


class Info(msgspec.Struct, frozen=True):
    """What we read of `/info`."""

    model_id: str
    max_total_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    """The KV tokens, up to version 2; version 3 tells them in its metrics."""
    version: str = ""

    @property
    def release(self) -> tuple[int, int] | None:
        """Its major and minor version, None where it does not tell them."""
        match = _RELEASE.match(self.version)
        return None if match is None else (int(match[1]), int(match[2]))


class _NativeError(msgspec.Struct):
    error: str
    error_type: str


@dataclass(slots=True)
class TgiBackend:
    """A Text Generation Inference server; what it lacks is known from the first look on."""

    endpoint: Endpoint
    _info: Info | None = field(default=None, init=False)

    @property
    def spec(self) -> BackendSpec:
        """The engine as its operator describes it."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Ask the engine for its model, memory and load."""
        info, metrics = await asyncio.gather(self.endpoint.attempt(INFO_PATH), self.endpoint.attempt(METRICS_PATH))
        if isinstance(info, BackendUnreachableError):
            raise info
        page = metrics if isinstance(metrics, bytes) else b""
        self._info = self.endpoint.decode(INFO_PATH, info, Info)
        return read_snapshot(self.spec, self._info, page)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later'."""
        return status == QUEUE_FULL_STATUS

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine itself failed."""
        return status == FAILED_STATUS or has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent."""
        return is_out_of_memory(HTTPStatus.INTERNAL_SERVER_ERROR if status == FAILED_STATUS else status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read TGI's own error body; its word for the error becomes the code."""
        try:
            native = msgspec.json.decode(body, type=_NativeError)
        except (ValueError, RecursionError):
            return read_error(status, body)
        kind = "invalid_request_error" if status == INVALID_STATUS else native.error_type
        return EngineError(native.error, kind, code=native.error_type)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Put a request into TGI's words: all of it where its version has no such route, or else a field or two."""
        info, since = self._info, OPENAI_ROUTES.get(path)
        if since is None:
            return None
        if info is None or info.release is None or info.release >= since:
            return adapt(path, body)
        return translate(path, body, created=int(time.time()), max_total_tokens=info.max_total_tokens)


def read_snapshot(spec: BackendSpec, info: Info, metrics: bytes) -> Snapshot:
    """Read a snapshot from TGI's information and metrics."""
    samples = read_samples(metrics, _FAMILIES)
    # One server is one rank: TGI's series have no labels.
    told = {family: total(per_rank(found, "")) for family, found in samples.items()}
    capacity = info.max_batch_total_tokens or told[KV_CAPACITY] or None
    return Snapshot(
        models=_models(spec, info),
        kv_capacity_tokens=capacity if spec.kv_tokens is None else spec.kv_tokens,
        kv_used_tokens=told[KV_USED],
        running=told[RUNNING],
        waiting=told[WAITING],
    )


def _models(spec: BackendSpec, info: Info) -> tuple[ModelCard, ...]:
    """Make the cards; a TGI serves one model, so its length is that of every name that the operator gives it."""
    names = (info.model_id,) if spec.models is None else spec.models
    return model_cards(spec, dict.fromkeys(names, info.max_total_tokens))
