"""The record of one finished request."""

from datetime import datetime
from typing import Literal

import msgspec

Status = Literal["ok", "rejected", "evicted", "cancelled", "failed"]
"""ok: completely answered. rejected: never queued. evicted: dropped from the gateway's queue. cancelled: the client
closed the connection. failed: the engine, or the connection to it, failed.
"""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request. Durations are in milliseconds; None means that the request did not get that far.

    Attributes:
        id: 128 random bits.
        request_id: the value of the response header x-request-id.
        sequences: number of answers: `n`, or the number of prompts in a list.
        input_tokens: the engine's count (`usage`), or None if it did not report one.
        output_tokens: the engine's count, or else the number of stream events, summed over `sequences`.
        features: the input of the prediction as little-endian float32, with the layout of `features_version`.
        template: digest of the system prompt.
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
