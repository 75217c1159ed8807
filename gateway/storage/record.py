"""The record of one finished request."""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec.structs import force_setattr

from gateway.stored_text import MAX_STORED_PROMPT_CHARS, stored_text

Status = Literal["ok", "rejected", "evicted", "cancelled", "failed"]
"""ok: completely answered. rejected: never queued. evicted: dropped from the gateway's queue. cancelled: the client
closed the connection. failed: the engine, or the connection to it, failed.
"""


_NAMES = ("request_id", "app", "user", "model", "route", "backend", "error_code", "finish_reason")
"""Fields whose text comes from clients and engines."""


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request. Durations are in milliseconds; None means that the request did not get that far.

    Texts are stored as `stored_text` returns them, also in records that are read from the journal.

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

    def __post_init__(self) -> None:
        """Shorten the texts that are too long, and replace the characters that Postgres does not store."""
        for name in _NAMES:
            text = getattr(self, name)
            if text is not None and (stored := stored_text(text)) is not text:
                force_setattr(self, name, stored)
        if self.prompt is not None:
            force_setattr(self, "prompt", stored_text(self.prompt, MAX_STORED_PROMPT_CHARS))
