"""Functions for all engines with OpenAI's routes: the list of models, and error bodies."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from backends.base import BackendSpec, EngineError, ModelCard
from backends.http import Endpoint, StatusError

MODELS_PATH = "/v1/models"
METRICS_PATH = "/metrics"

MAX_RAW_ERROR_CHARS = 500

TOO_LONG_STATUSES = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
TOO_LONG_CODES = ("context_length_exceeded", "string_above_max_length")
TOO_LONG_PHRASES = (
    "context length",  # vLLM, SGLang
    "context window",
    "context size",  # llama.cpp
    "max_model_len",  # vLLM
    "maximum model length",
    "max_new_tokens` must be <=",  # TGI
    "input is too long",
    "prompt is too long",
)
"""Parts of the messages with which engines refuse a request as too long, in lower case."""


class _Model(msgspec.Struct):
    id: str
    # An extension of vLLM and SGLang. Another engine may use any type here, and the list must stay readable.
    max_model_len: Any = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


async def read_models_and_metrics(endpoint: Endpoint) -> tuple[tuple[ModelCard, ...], bytes]:
    """Read both pages at the same time. If the metrics page fails, it counts as empty.

    Raises:
        BackendUnreachableError: the list of models cannot be read. A missing route (404) is no error if the operator
            configured the models.
    """
    models, metrics = await asyncio.gather(endpoint.attempt(MODELS_PATH), endpoint.attempt(METRICS_PATH))
    page = metrics if isinstance(metrics, bytes) else b""
    if isinstance(models, bytes):
        listed = endpoint.decode(MODELS_PATH, models, _ModelList).data
        return model_cards(endpoint.spec, {model.id: model.max_model_len for model in listed}), page
    if isinstance(models, StatusError) and models.status == HTTPStatus.NOT_FOUND and endpoint.spec.models is not None:
        return model_cards(endpoint.spec, {}), page
    raise models


def model_cards(spec: BackendSpec, reported: Mapping[str, object]) -> tuple[ModelCard, ...]:
    """Return the operator's models, or else the engine's models, with the context length that the engine reports."""
    served = reported if spec.models is None else spec.models
    return tuple(ModelCard(name, _positive_int(reported.get(name))) for name in served)


def read_error(status: int, body: bytes) -> EngineError:
    """Return the fields of an error body in OpenAI's format or a similar one.

    Similar formats: the flat body of older vLLM and of SGLang, `{"error": "…"}`, and FastAPI's `{"detail": …}`.

    >>> read_error(401, b'{"error": "Unauthorized"}')
    EngineError(message='Unauthorized', type='invalid_request_error', param=None, code=None)
    """
    fields = _error_fields(body)
    message = fields.get("message")
    if not isinstance(message, str):
        return EngineError(raw_message(status, body), default_type(status))
    kind, param, code = fields.get("type"), fields.get("param"), fields.get("code")
    return EngineError(
        message=message,
        type=kind if isinstance(kind, str) else default_type(status),
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str | int) else None,
    )


def is_out_of_memory(status: int, error: EngineError) -> bool:
    """Return whether the engine ran out of memory. All servers pass on PyTorch's error text.

    >>> is_out_of_memory(500, EngineError("CUDA out of memory. Tried to allocate 2.00 GiB.", "server_error"))
    True
    """
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and "out of memory" in error.message.lower()


def is_too_long(status: int, code: str | int | None, message: str) -> bool:
    """Return whether an engine refuses a request because it is longer than the engine's context.

    >>> is_too_long(400, None, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens")
    True
    >>> is_too_long(400, None, "temperature must be non-negative")
    False
    """
    if status not in TOO_LONG_STATUSES:
        return False
    return code in TOO_LONG_CODES or any(phrase in message.lower() for phrase in TOO_LONG_PHRASES)


def has_failed(status: int) -> bool:
    """Return whether the engine failed, as opposed to rejecting the request."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR


def default_type(status: int) -> str:
    """Return the error type for a body that has none."""
    return "invalid_request_error" if 400 <= status < 500 else "server_error"


def raw_message(status: int, body: bytes) -> str:
    """Return the start of a body in an unknown format."""
    text = body.decode("utf-8", "replace").strip()[:MAX_RAW_ERROR_CHARS]
    return text or f"the engine answered {status} without an error message"


def _error_fields(body: bytes) -> dict[str, Any]:
    """Return the object that contains the message, or an empty one."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return {}
    match answer:
        case {"error": dict(fields)}:
            return fields
        case {"error": str(message)} | {"detail": str(message)}:
            return {"message": message}
        case {"detail": [{"msg": str(message)}, *_]}:
            return {"message": message}
        case dict(fields):
            return fields
        case _:
            return {}


def _positive_int(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
