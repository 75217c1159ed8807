"""Adapter for Hugging Face's Text Generation Inference (TGI), versions 1 to 3.

TGI reserves the KV memory for a request's input and `max_new_tokens` before it starts, so its metrics show reserved
memory as used. All versions have `/info`, which names the model. The first versions do not have OpenAI's routes.
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
QUEUE_FULL_STATUS = HTTPStatus.TOO_MANY_REQUESTS  # limit: --max-concurrent-requests
INVALID_STATUS = HTTPStatus.UNPROCESSABLE_ENTITY
FAILED_STATUS = HTTPStatus.FAILED_DEPENDENCY  # a shard of the engine failed

OPENAI_ROUTES = {CHAT_PATH: (1, 4), COMPLETION_PATH: (2, 0)}
"""The first version with each route."""

RUNNING = "tgi_batch_current_size"
WAITING = "tgi_queue_size"
KV_USED = "tgi_batch_current_max_tokens"
KV_CAPACITY = "tgi_batch_max_total_tokens"

_RELEASE = re.compile(r"(\d{1,4})\.(\d{1,4})")
_FAMILIES = (RUNNING, WAITING, KV_USED, KV_CAPACITY)


class Info(msgspec.Struct, frozen=True):
    """The fields of `/info` that the adapter uses."""

    model_id: str
    max_total_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    """The size of the KV memory, up to version 2. Version 3 reports it in its metrics."""
    version: str = ""

    @property
    def release(self) -> tuple[int, int] | None:
        """The major and minor version, or None if the engine does not report them."""
        match = _RELEASE.match(self.version)
        return None if match is None else (int(match[1]), int(match[2]))


class _NativeError(msgspec.Struct):
    error: str
    error_type: str


@dataclass(slots=True)
class TgiBackend:
    """A TGI server. The first scrape finds its version, and so the routes that it lacks."""

    endpoint: Endpoint
    _info: Info | None = field(default=None, init=False)

    @property
    def spec(self) -> BackendSpec:
        """The operator's configuration."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Read the engine's model, memory and load."""
        info, metrics = await asyncio.gather(self.endpoint.attempt(INFO_PATH), self.endpoint.attempt(METRICS_PATH))
        if isinstance(info, BackendUnreachableError):
            raise info
        page = metrics if isinstance(metrics, bytes) else b""
        self._info = self.endpoint.decode(INFO_PATH, info, Info)
        return read_snapshot(self.spec, self._info, page)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Return whether the engine's queue is full."""
        return status == QUEUE_FULL_STATUS

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Return whether the error is a failure of the engine."""
        return status == FAILED_STATUS or has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Return whether the engine ran out of memory."""
        return is_out_of_memory(HTTPStatus.INTERNAL_SERVER_ERROR if status == FAILED_STATUS else status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Return the fields of TGI's error body. `error_type` becomes the code."""
        try:
            native = msgspec.json.decode(body, type=_NativeError)
        except (ValueError, RecursionError):
            return read_error(status, body)
        kind = "invalid_request_error" if status == INVALID_STATUS else native.error_type
        return EngineError(native.error, kind, code=native.error_type)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Translate the request: to a native route if this version lacks OpenAI's, otherwise only single fields."""
        info, since = self._info, OPENAI_ROUTES.get(path)
        if since is None:
            return None
        if info is None or info.release is None or info.release >= since:
            return adapt(path, body)
        return translate(path, body, created=int(time.time()), max_total_tokens=info.max_total_tokens)


def read_snapshot(spec: BackendSpec, info: Info, metrics: bytes) -> Snapshot:
    """Return a snapshot from TGI's `/info` and metrics."""
    samples = read_samples(metrics, _FAMILIES)
    # A TGI server is one rank: its series have no labels.
    values = {family: total(per_rank(found, "")) for family, found in samples.items()}
    capacity = info.max_batch_total_tokens or values[KV_CAPACITY] or None
    return Snapshot(
        models=_models(spec, info),
        kv_capacity_tokens=capacity if spec.kv_tokens is None else spec.kv_tokens,
        kv_used_tokens=values[KV_USED],
        running=values[RUNNING],
        waiting=values[WAITING],
    )


def _models(spec: BackendSpec, info: Info) -> tuple[ModelCard, ...]:
    """Return the models. TGI serves one model, so every configured name has the same context length."""
    names = (info.model_id,) if spec.models is None else spec.models
    return model_cards(spec, dict.fromkeys(names, info.max_total_tokens))
