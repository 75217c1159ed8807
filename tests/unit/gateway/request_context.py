"""Request contexts for tests."""

from datetime import UTC, datetime
from typing import Any

from gateway.dispatch.context import RequestContext
from gateway.protocol.api_formats import CHAT, ApiFormat

ARRIVED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def request_context(arrival_s: float, api_format: ApiFormat = CHAT, **known: Any) -> RequestContext:
    return RequestContext("id", "req-1", api_format, api_format.path, ARRIVED_AT, arrival_s, **known)
