"""The only error tree.

```
Exception
├ GatewayError                 a request that ends without a generation: HTTP status, type and code
│ ├ RequestRejected              before the queue
│ │ ├ InvalidRequest 400            ├ Unauthorized 401            ├ Forbidden 403
│ │ ├ RouteNotFound 404             ├ ModelNotFound 404           ├ BackendNotFound 404
│ │ ├ MethodNotAllowed 405          ├ BodyTimeout 408             ├ BackendExists 409
│ │ ├ ConfiguredBackend 409         ├ BodyTooLarge 413            ├ UnsupportedEncoding 415
│ │ ├ HeadTimeout 408               ├ HeadTooLarge 431            ├ QueueFull 429 (+Retry-After)
│ │ ├ KeysUnavailable 503           ├ NoBackend 503               ├ BackendsUnavailable 503
│ │ ├ HistoryUnavailable 503
│ │ └ TooManyConnections 503 (+Retry-After)   └ TooManyBodyBytes 503 (+Retry-After)
│ ├ RequestEvicted               after the queue, and not because of the engine
│ │ ├ ClientTooSlow 408   ├ ClientGone 499   ├ ShuttingDown 503   └ QueueTimeout 504
│ └ BackendError                 because of the engine or the connection to it
│   ├ BackendAway 502   ├ BackendRedirects 502   ├ CredentialsRefused 502
│   ├ BackendUnavailable 502   ├ BackendTimeout 504   ├ ProtocolError 502   ├ BackendFull 503   ├ BatchSplit 500
│   └ BackendRefused             the engine's own status and error body, passed through
│     └ BackendOutOfMemory
├ OperatorError                a command or a part of the installation that cannot work; one line for the operator
│ ├ SettingsError   ├ ListenError   ├ EmbeddedPostgresError   ├ JournalInUse   ├ RegistrationError
│ ├ RowError        ├ UnknownVersion   ├ TrainerFailed        ├ EngineStartError   ├ StarvedError
│ └ TaskEnded       └ StartFailed      └ StartInterrupted
├ StorageError                 a write to Postgres that failed
│ └ DatabaseUnavailable   └ RecordsRefused
└ ParseError                   bytes that are not what they should be
  └ NotHttpError   └ EventTooLarge   └ DatabaseUrlError
```

`type`, `param` and `code` of a `GatewayError` are the fields of OpenAI's error object. Its message is for the
application's developer. It names the field that is wrong, and contains neither prompt text nor secrets.
"""


class GatewayError(Exception):
    """A request that ends without a generation."""

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
    """The request never entered the queue."""

    type = "invalid_request_error"


class InvalidRequest(RequestRejected):
    """The body is not valid for this route; `param` names the field."""

    status = 400
    code = "invalid_request"


class Unauthorized(RequestRejected):
    """The API key is missing or not valid."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        """The authentication scheme, which RFC 9110 requires of every 401."""
        return {"www-authenticate": "Bearer"}


class Forbidden(RequestRejected):
    """The caller is known, but may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class RouteNotFound(RequestRejected):
    """There is no such route."""

    status = 404
    code = "route_not_found"


class ModelNotFound(RequestRejected):
    """No backend serves the model."""

    status = 404
    code = "model_not_found"


class BackendNotFound(RequestRejected):
    """There is no backend of that name."""

    status = 404
    code = "backend_not_found"


class MethodNotAllowed(RequestRejected):
    """The route exists, but not for this method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        """The methods that the route accepts, which RFC 9110 requires of every 405."""
        return {"allow": ", ".join(self.allowed)}


class BodyTimeout(RequestRejected):
    """The client stopped sending before the body was complete."""

    status = 408
    code = "request_timeout"


class HeadTimeout(RequestRejected):
    """The client did not complete the head of its request in time."""

    status = 408
    type = "timeout_error"
    code = "head_timeout"


class HeadTooLarge(RequestRejected):
    """The head of the request has too many bytes or header fields."""

    status = 431
    code = "head_too_large"


class BackendExists(RequestRejected):
    """Another backend has that name."""

    status = 409
    code = "backend_exists"


class ConfiguredBackend(RequestRejected):
    """The settings file defines the backend, so only the settings file can change it."""

    status = 409
    code = "backend_configured"


class BodyTooLarge(RequestRejected):
    """The body, or the text in it, is larger than the configured limit."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestRejected):
    """The gateway does not know the body's `Content-Encoding`."""

    status = 415
    code = "unsupported_content_encoding"

    @property
    def headers(self) -> dict[str, str]:
        """The encodings that the gateway accepts, as RFC 9110 asks of a 415."""
        return {"accept-encoding": "gzip, zstd"}


class QueueFull(RequestRejected):
    """The queue has reached its limit. The client can try again after `retry_after_s` seconds."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, at least one."""
        return {"retry-after": str(max(1, round(self.retry_after_s)))}


class TooManyConnections(RequestRejected):
    """The connection is one more than the gateway accepts."""

    status = 503
    type = "server_error"
    code = "too_many_connections"

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in seconds."""
        return {"retry-after": "1"}


class TooManyBodyBytes(RequestRejected):
    """The requests that the gateway holds have too many bytes together, or those of one client have."""

    status = 503
    type = "server_error"
    code = "too_many_body_bytes"

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in seconds: bodies are freed as soon as their requests end."""
        return {"retry-after": "1"}


class KeysUnavailable(RequestRejected):
    """The database of API keys is away, and the gateway has not seen this key recently."""

    status = 503
    type = "server_error"
    code = "keys_unavailable"


class NoBackend(RequestRejected):
    """Backends serve the model, but none is reachable."""

    status = 503
    type = "server_error"
    code = "no_backend"


class BackendsUnavailable(RequestRejected):
    """The database that stores the backends is away."""

    status = 503
    type = "server_error"
    code = "backends_unavailable"


class HistoryUnavailable(RequestRejected):
    """The database that stores the requests is away."""

    status = 503
    type = "server_error"
    code = "history_unavailable"


class RequestEvicted(GatewayError):
    """The request left the queue, or lost its engine, without the engine's fault."""


class ClientTooSlow(RequestEvicted):
    """The client did not read its answer within the time that one request may hold an engine."""

    status = 408
    type = "timeout_error"
    code = "client_too_slow"


class ClientGone(RequestEvicted):
    """The client closed its connection, so there is nobody to answer. 499 is nginx's status for this."""

    status = 499
    type = "client_error"
    code = "client_gone"


class ShuttingDown(RequestEvicted):
    """The gateway is stopping. Another one may answer the request."""

    status = 503
    code = "shutting_down"

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in seconds."""
        return {"retry-after": "1"}


class QueueTimeout(RequestEvicted):
    """No engine had room before the request's time in the queue was over."""

    status = 504
    type = "timeout_error"
    code = "queue_timeout"


class BackendError(GatewayError):
    """The engine, or the connection to it, failed."""

    type = "backend_error"


class BackendUnavailable(BackendError):
    """The connection to the engine could not be opened, or it broke."""

    status = 502
    code = "backend_unavailable"


class BackendAway(BackendUnavailable):
    """The engine accepted no connection, so it has not seen the request. The client sees a `BackendUnavailable`."""


class BackendTimeout(BackendError):
    """The engine sent nothing for too long."""

    status = 504
    code = "backend_timeout"


class ProtocolError(BackendError):
    """The engine's answer does not follow its API."""

    status = 502
    code = "backend_protocol_error"


class BackendRedirects(ProtocolError):
    """The engine answers with a redirect. The gateway does not follow it: the backend's URL is wrong."""

    code = "backend_redirects"


class CredentialsRefused(BackendError):
    """The engine refused the gateway's own credentials. The operator has to correct the backend's API key."""

    status = 502
    code = "backend_credentials_refused"


class BackendFull(BackendError):
    """The engine's own queue is full. The request goes back to our queue; the client does not see this error."""

    status = 503
    code = "backend_full"


class BatchSplit(BackendError):
    """A batch needed more memory than the engine has. The scheduler splits it; wait for the next assignment."""

    status = 500
    code = "backend_out_of_memory"


class BackendRefused(BackendError):
    """The engine refused the request, with a status and an error body of its own.

    `retry_after` is the engine's `Retry-After`, if it sent one. `too_long` tells that the request is longer than the
    engine's context.
    """

    retry_after: str | None = None
    too_long: bool = False

    def __init__(
        self, message: str, *, status: int, type: str, param: str | None = None, code: str | int | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.type = type
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """The engine's `Retry-After`."""
        return {} if self.retry_after is None else {"retry-after": self.retry_after}


class BackendOutOfMemory(BackendRefused):
    """The engine ran out of memory. A smaller batch may succeed."""


class OperatorError(Exception):
    """A command, or a part of the installation, cannot work. The message is one line for the operator."""


class SettingsError(OperatorError, ValueError):
    """A setting is wrong; the message names it and says where it was set.

    `field` is the setting's path, if one setting is at fault.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ListenError(OperatorError):
    """The gateway cannot listen on the address; the message names the address and the reason."""


class EmbeddedPostgresError(OperatorError):
    """The embedded Postgres did not start; the message names the directory and the reason."""


class TaskEnded(OperatorError):
    """A task that the gateway needs ended by itself; the message names the task and the reason."""


class StartFailed(OperatorError):
    """The gateway did not start; the log has the details."""


class StartInterrupted(OperatorError):
    """A signal stopped the gateway before it listened. This is no failure."""

    def __init__(self) -> None:
        super().__init__("a signal stopped the gateway before it listened")


class JournalInUse(OperatorError):
    """Another process keeps its journal in this directory."""


class RegistrationError(OperatorError):
    """The gateway refused to register a backend; the message says what the operator has to correct."""


class RowError(OperatorError, ValueError):
    """A file of rows cannot be used; the message names the file, the line and the field."""


class UnknownVersion(OperatorError, LookupError):
    """The predictor has no such version, or no earlier version to go back to."""


class TrainerFailed(OperatorError):
    """The trainer process ended without a report."""


class EngineStartError(OperatorError):
    """A simulated engine's process ended before it listened; its own message is on stderr."""


class StarvedError(OperatorError):
    """A simulated scheduler holds requests while every engine is idle and no event is left."""


class StorageError(Exception):
    """A write to Postgres failed.

    `certain` means that Postgres named its own state as the reason: it is read-only, or its disk is full.
    """

    certain = False


class DatabaseUnavailable(StorageError):
    """Postgres did not accept the write now; the same write may succeed later."""

    def __init__(self, message: str, *, certain: bool = False) -> None:
        super().__init__(message)
        self.certain = certain


class RecordsRefused(StorageError):
    """Postgres answers and refused at least one of these rows; none was written."""


class ParseError(ValueError):
    """Bytes that are not what they should be."""


class NotHttpError(ParseError):
    """The bytes are not HTTP/1.1, or a part of the message is larger than its limit."""


class EventTooLarge(ParseError):
    """A server-sent event did not end within `MAX_EVENT_BYTES`."""


class DatabaseUrlError(ParseError):
    """The URL of the database is wrong. The message names the part and does not contain the password."""
