"""What can go wrong with a request, as one tree.

```
GatewayError(status, type, code)
├ RequestRejected    before the queue
│ ├ InvalidRequest 400    ├ BodyTooLarge 413      ├ BodyTimeout 408
│ ├ Unauthorized 401      ├ Forbidden 403         ├ RouteNotFound 404
│ ├ MethodNotAllowed 405  ├ ModelNotFound 404     ├ QueueFull 429 (+Retry-After)
│ ├ KeysUnavailable 503   ├ NoBackend 503         └ UnsupportedEncoding 415
├ RequestEvicted     after it was queued, and not for what an engine did
│ ├ QueueTimeout 504      ├ ShuttingDown 503
│ └ ClientGone 499        └ ClientTooSlow 408
└ BackendError       the engine, or the way to it
  ├ BackendUnavailable 502    ├ BackendTimeout 504    ├ ProtocolError 502
  └ BackendRefused            the engine's own status and error, passed through
```

`type`, `param` and `code` are the fields of OpenAI's error object. Messages are for the application's developer: they
name the field at fault and carry neither prompt text nor secrets.
"""


class GatewayError(Exception):
    """A request that is not answered with a generation."""

    status: int = 500
    type: str = "server_error"
    code: str | int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {}


class RequestRejected(GatewayError):
    """Never queued."""

    type = "invalid_request_error"


class InvalidRequest(RequestRejected):
    """The body is not what the route takes; `param` names the field."""

    status = 400
    code = "invalid_request"


class BodyTooLarge(RequestRejected):
    """The body, or the text in it, is over the configured limit."""

    status = 413
    code = "request_too_large"


class BodyTimeout(RequestRejected):
    """The client stopped sending before the body was whole."""

    status = 408
    code = "request_timeout"


class UnsupportedEncoding(RequestRejected):
    """The body is compressed in a way that is not known here."""

    status = 415
    code = "unsupported_content_encoding"

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110 has a 415 say what would be taken."""
        return {"accept-encoding": "gzip, zstd"}


class Unauthorized(RequestRejected):
    """No API key, or one that is not valid."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        """RFC 9110 asks every 401 to name its scheme."""
        return {"www-authenticate": "Bearer"}


class Forbidden(RequestRejected):
    """Known, but not allowed."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class RouteNotFound(RequestRejected):
    """There is no such route."""

    status = 404
    code = "route_not_found"


class MethodNotAllowed(RequestRejected):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(RequestRejected):
    """No backend serves the model."""

    status = 404
    code = "model_not_found"


class QueueFull(RequestRejected):
    """The queue is at its bound: back-pressure, try again in `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds, at least one."""
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


class KeysUnavailable(RequestRejected):
    """The database that knows the API keys is away, and this one has not been seen lately."""

    status = 503
    type = "server_error"
    code = "keys_unavailable"


class NoBackend(RequestRejected):
    """Backends serve the model, but none is reachable."""

    status = 503
    type = "server_error"
    code = "no_backend"


class RequestEvicted(GatewayError):
    """Given up after it was queued, and not for what an engine did."""


class QueueTimeout(RequestEvicted):
    """Waited longer than `scheduling.queue_timeout_s`."""

    status = 504
    type = "timeout_error"
    code = "queue_timeout"


class ShuttingDown(RequestEvicted):
    """The gateway is stopping."""

    status = 503
    code = "shutting_down"


class ClientTooSlow(RequestEvicted):
    """The client had not taken its answer when the time was over that an engine may be held."""

    status = 408
    type = "timeout_error"
    code = "client_too_slow"


class ClientGone(RequestEvicted):
    """The client closed its connection; nobody is left to answer (499 is nginx's number for it)."""

    status = 499
    type = "client_error"
    code = "client_gone"


class BackendError(GatewayError):
    """The engine, or the way to it, failed."""

    type = "backend_error"


class BackendUnavailable(BackendError):
    """No connection, or one that broke."""

    status = 502
    code = "backend_unavailable"


class BackendTimeout(BackendError):
    """The engine sent nothing for too long."""

    status = 504
    code = "backend_timeout"


class ProtocolError(BackendError):
    """The engine answered something that is not its API."""

    status = 502
    code = "backend_protocol_error"


class BackendRefused(BackendError):
    """The engine said no, in its own words."""

    def __init__(
        self, message: str, *, status: int, type: str, param: str | None = None, code: str | int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.type = type
        self.code = code
