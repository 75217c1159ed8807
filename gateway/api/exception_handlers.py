"""Answers errors outside of the generation routes with OpenAI's error object."""

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.types import ExceptionHandlersMap

from gateway.api.middleware import allowed_methods
from gateway.errors import GatewayError, InvalidRequest, MethodNotAllowed, RouteNotFound
from gateway.protocol.error_bodies import openai_error

_log = logging.getLogger(__name__)


def exception_handlers() -> ExceptionHandlersMap:
    """Return the application's exception handlers."""
    return {GatewayError: _answer_error, HTTPException: _answer_http, Exception: _answer_bug}


def _answer_error(_: Request[Any, Any, Any], error: GatewayError) -> Response[bytes]:
    return Response(openai_error(error), status_code=error.status, headers=error.headers, media_type="application/json")


def _answer_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer an error of the framework: an unknown route, or a method that the route does not accept."""
    if error.status_code == 404:
        return _answer_error(request, RouteNotFound(f"The route {request.url.path[:200]} does not exist"))
    if error.status_code == 405:
        message = f"{request.url.path[:200]} does not accept {request.method}"
        return _answer_error(request, MethodNotAllowed(message, allowed=allowed_methods(request.app, request.url.path)))
    if error.status_code < 500:
        return _answer_error(request, InvalidRequest(error.detail))
    return _answer_bug(request, error)


def _answer_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("Unexpected failure in %s", request.url.path, exc_info=error)
    return _answer_error(request, GatewayError("The gateway itself failed; its log says why"))
