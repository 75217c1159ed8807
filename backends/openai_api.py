"""What all engines with OpenAI's routes have in common: the list of models, and the error bodies."""

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


class _Model(msgspec.Struct):
    id: str
    # An extension of vLLM's and SGLang's: whatever another engine puts there must not cost us the list.
    max_model_len: Any = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


async def read_models_and_metrics(endpoint: Endpoint) -> tuple[tuple[ModelCard, ...], bytes]:
    """Read both pages side by side; metrics that don't answer are an empty page.

    Raises:
        BackendUnreachableError: the list of models doesn't answer. Where the operator lists the models, an engine
            without that route is no failure.
    """
    models, metrics = await asyncio.gather(endpoint.attempt(MODELS_PATH), endpoint.attempt(METRICS_PATH))
    page = metrics if isinstance(metrics, bytes) else b""
    if isinstance(models, bytes):
        listed = endpoint.decode(MODELS_PATH, models, _ModelList).data
        return model_cards(endpoint.spec, {model.id: model.max_model_len for model in listed}), page
    if isinstance(models, StatusError) and models.status == HTTPStatus.NOT_FOUND and endpoint.spec.models is not None:
        return model_cards(endpoint.spec, {}), page
    raise models


def model_cards(spec: BackendSpec, told: Mapping[str, object]) -> tuple[ModelCard, ...]:
    """Make cards of the operator's models, or else of those that the engine told with their greatest length."""
    served = told if spec.models is None else spec.models
    return tuple(ModelCard(name, _positive_int(told.get(name))) for name in served)


def read_error(status: int, body: bytes) -> EngineError:
    """Read an error body in OpenAI's shape or one of its relatives.

    Relatives are the flat body of older vLLM and of SGLang, `{"error": "…"}`, and FastAPI's `{"detail": …}`.

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
    """Tell whether the engine failed for want of memory; PyTorch's words for it come through every server.

    >>> is_out_of_memory(500, EngineError("CUDA out of memory. Tried to allocate 2.00 GiB.", "server_error"))
    True
    """
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR and "out of memory" in error.message.lower()


def has_failed(status: int) -> bool:
    """Tell a failure of the engine's from a request that it objects to."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR


def default_type(status: int) -> str:
    """Name the type of an error that does not name its own."""
    return "invalid_request_error" if 400 <= status < 500 else "server_error"


def raw_message(status: int, body: bytes) -> str:
    """Quote the start of a body in no known shape."""
    text = body.decode("utf-8", "replace").strip()[:MAX_RAW_ERROR_CHARS]
    return text or f"the engine answered {status} without saying why"


def _error_fields(body: bytes) -> dict[str, Any]:
    """Find the object that holds the message; an empty one where there is none."""
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
