"""Encodes errors in the format of the API that the client called."""

import msgspec

from gateway.errors import GatewayError

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def openai_error(error: GatewayError) -> bytes:
    """Encode OpenAI's error object.

    >>> from gateway.errors import ModelNotFound
    >>> openai_error(ModelNotFound("no such model", param="model"))
    b'{"error":{"message":"no such model","type":"invalid_request_error","param":"model","code":"model_not_found"}}'
    """
    return msgspec.json.encode({"error": _openai_fields(error)})


def openai_error_event(error: GatewayError) -> bytes:
    """Encode OpenAI's error object as the last event of a stream; no `[DONE]` follows."""
    return b"data: " + openai_error(error) + b"\n\n"


def response_error_event(error: GatewayError) -> bytes:
    """Encode the error event of a Responses stream. OpenAI's client raises an error if `error` is present."""
    fields = _openai_fields(error)
    code = None if error.code is None else str(error.code)
    event = {"type": "error", "code": code, "message": error.message, "param": error.param, "error": fields}
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


def anthropic_error(error: GatewayError) -> bytes:
    """Encode Anthropic's error object. Its type follows from the status.

    >>> from gateway.errors import ModelNotFound
    >>> anthropic_error(ModelNotFound("no such model", param="model"))
    b'{"type":"error","error":{"type":"not_found_error","message":"no such model"}}'
    """
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})


def anthropic_error_event(error: GatewayError) -> bytes:
    """Encode Anthropic's error object as the last event of a stream; no `message_stop` follows."""
    return b"event: error\ndata: " + anthropic_error(error) + b"\n\n"


def _openai_fields(error: GatewayError) -> dict[str, str | int | None]:
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
