"""Hugging Face's Text Generation Inference, 1 to 3.

It reserves a request's input and `max_new_tokens` up front, so what it calls used is reserved. All versions have
`/info`, whose model `/v1/models` of the later ones only repeats.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from backends.base import BackendSpec, BackendUnreachableError, EngineError, ModelCard, Snapshot
from backends.http import Endpoint
from backends.metrics_text import per_rank, read_samples, total
from backends.openai_api import METRICS_PATH, is_out_of_memory, model_cards, read_error

INFO_PATH = "/info"
QUEUE_FULL_STATUS = HTTPStatus.TOO_MANY_REQUESTS  # beyond --max-concurrent-requests
INVALID_STATUS = HTTPStatus.UNPROCESSABLE_ENTITY

RUNNING = "tgi_batch_current_size"
WAITING = "tgi_queue_size"
KV_USED = "tgi_batch_current_max_tokens"
KV_CAPACITY = "tgi_batch_max_total_tokens"

_FAMILIES = (RUNNING, WAITING, KV_USED, KV_CAPACITY)


class Info(msgspec.Struct, frozen=True):
    """What we read of `/info`."""

    model_id: str
    max_total_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    """The KV tokens, up to version 2; version 3 tells them in its metrics."""


class _NativeError(msgspec.Struct):
    error: str
    error_type: str


@dataclass(frozen=True, slots=True)
class TgiBackend:
    """A Text Generation Inference server."""

    endpoint: Endpoint

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
        return read_snapshot(self.spec, self.endpoint.decode(INFO_PATH, info, Info), page)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later'."""
        return status == QUEUE_FULL_STATUS

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent."""
        return is_out_of_memory(status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read TGI's own error body; its word for the error becomes the code."""
        try:
            native = msgspec.json.decode(body, type=_NativeError)
        except (ValueError, RecursionError):
            return read_error(status, body)
        kind = "invalid_request_error" if status == INVALID_STATUS else native.error_type
        return EngineError(native.error, kind, code=native.error_type)


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
