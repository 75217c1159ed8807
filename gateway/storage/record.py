"""One finished request, as history keeps it."""

from datetime import datetime
from typing import Literal

import msgspec

Status = Literal["ok", "rejected", "evicted", "cancelled", "failed"]
"""ok: answered whole. rejected: never queued. evicted: dropped from our queue. cancelled: the client went. failed: the
engine or the way to it did."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a request once it is over. Durations in milliseconds, None where it never came to that.

    `id` is 128 random bits; `request_id` is what the client saw as x-request-id. `input_tokens` and `output_tokens` are
    the engine's own counts where it told them (`usage`), else None for input and the events counted so far for output.
    `output_tokens` sums over `sequences` (n, or the prompts of a list). `features` is what the prediction was
    made from: little-endian float32, laid out as `features_version` says. `template` is the system prompt's digest.
    """

    id: str
    request_id: str
    arrived_at: datetime
    app: str
    user: str | None
    model: str
    route: str
    stream: bool
    status: Status
    http_status: int
    backend: str | None = None
    error_code: str | None = None
    finish_reason: str | None = None
    sequences: int = 1
    prompt_bytes: int = 0
    max_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int = 0
    predicted_tokens: int | None = None
    predicted_p90_tokens: int | None = None
    prediction_source: str | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    prompt: str | None = None
    features: bytes | None = None
    features_version: str | None = None
    template: str | None = None
