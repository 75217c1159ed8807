"""Errors in the shape of the API that the client called."""

import msgspec

from gateway.errors import GatewayError


def openai_error(error: GatewayError) -> bytes:
    """Write OpenAI's error object.

    >>> from gateway.errors import ModelNotFound
    >>> openai_error(ModelNotFound("no such model", param="model"))
    b'{"error":{"message":"no such model","type":"invalid_request_error","param":"model","code":"model_not_found"}}'
    """
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": body})


def openai_error_event(error: GatewayError) -> bytes:
    """Write the same as an event of a stream that has begun; no `[DONE]` follows it."""
    return b"data: " + openai_error(error) + b"\n\n"
