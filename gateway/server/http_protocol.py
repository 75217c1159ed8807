"""HTTP/1.1 on one connection: uvicorn's protocol with limits of our own.

uvicorn bounds neither the size nor the time of a request's head. This protocol adds what a gateway in front of unknown
clients needs: bounds for a head in bytes, fields and seconds; a bound for what is not body between the parts of a body;
a limit on connections; the end of connections whose client does not read; and requests that offer another protocol
(`Upgrade`), which are answered over HTTP/1.1 as if they did not.
"""

import asyncio
import resource
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import (
    GatewayError,
    HeadTimeout,
    HeadTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    TooManyConnections,
)
from gateway.protocol.error_bodies import openai_error

MAX_HEAD_BYTES = 64 * 1024
"""Largest request line with all header fields. A larger one is answered with 431."""

MAX_HEADERS = 128
"""Most header fields of a request. More are answered with 431."""

HEAD_S = 10.0
"""A head must be complete this long after its first byte, the first head this long after the connection began."""

UNREAD_BODY_S = 10.0
"""After an answer to an incomplete body, the rest of the body may take this long. Then the connection closes."""

MAX_FRAMING_RATIO = 16
"""Most bytes of chunk sizes, extensions and trailers for one byte of a body, beyond `MAX_HEAD_BYTES`."""

MAX_PIPELINED = 16
"""Most requests of a connection that wait for the answer to an earlier one."""

WRITE_STALL_S = 120.0
"""A connection whose client reads nothing for this long, while bytes for it wait, is closed."""

LINGER_S = 2.0
"""After a refusal, input is discarded this long. If the connection closed at once, the client could miss the answer."""

RESERVED_DESCRIPTORS = 128
"""Descriptors that no client's connection may use: for the database, files, scrapes and refusals."""

_MAX_REFUSALS = 64
"""Most connections beyond the limit that get an answer at the same time. Others are closed without one."""

_OFFER = {b"upgrade", b"http2-settings"}


def max_connections() -> int:
    """Return how many clients may be connected: half of the descriptors, because each may need one to an engine.

    The operator can change the limit of a running process, so it is read again for every connection.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 2**20
    return max(1, (limit - RESERVED_DESCRIPTORS) // 2)


class HttpProtocol(HttpToolsProtocol):
    """One connection of a client.

    `_received` counts the bytes of the head that is being read, or of the body with its framing. `_deadline` is the
    timer of a head, or of a body that nobody reads any more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._received = 0
        self._body_bytes = 0
        self._offers_upgrade = False
        self._discards = False
        self._refusal: GatewayError | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._write_watch: asyncio.TimerHandle | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first head, or refuse the connection."""
        super().connection_made(transport)
        excess = len(self.connections) - max_connections()
        if excess > _MAX_REFUSALS:
            transport.abort()
        elif excess > 0:
            self._answer(TooManyConnections("The gateway has too many connections; try again later"))
        else:
            self._deadline = self.loop.call_later(HEAD_S, self._end_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._cancel_deadline()
        self._unset_keepalive_if_required()
        self._cancel_write_watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes and check the limits."""
        if self._discards:
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidRequest("The request is not valid HTTP"))
            return
        if self._in_head:
            if self._received > MAX_HEAD_BYTES:
                self._refuse(_head_too_large())
            elif self._received and self._deadline is None:
                self._deadline = self.loop.call_later(HEAD_S, self._end_head)
        elif self._received - self._body_bytes > MAX_HEAD_BYTES + MAX_FRAMING_RATIO * self._body_bytes:
            self._refuse(InvalidRequest("The chunks of the body have too much framing"))

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                # The parser takes what follows for another protocol. A server may ignore the offer (RFC 9110, 7.8), so
                # parse the head again without it.
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self._offers_upgrade = False
            else:
                return

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        fields = [(name, value) for name, value in self.headers if name not in _OFFER]
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in fields:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() not in _OFFER)
            lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field of the head. Trailers of a body are dropped."""
        if not self._in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._raise(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless the head must be parsed again without its offer of another protocol."""
        if self.parser.get_method() == b"CONNECT":
            self._raise(MethodNotAllowed("CONNECT is not accepted", allowed=("GET", "HEAD", "POST", "OPTIONS")))
        if self.parser.should_upgrade():
            self._offers_upgrade = True
            return
        if self._received > MAX_HEAD_BYTES and self._head_size() > MAX_HEAD_BYTES:
            self._raise(_head_too_large())
        if len(self.pipeline) >= MAX_PIPELINED:
            self._raise(InvalidRequest(f"More than {MAX_PIPELINED} requests wait for an earlier one's answer"))
        if self._deadline is not None:
            self._cancel_deadline()
        self._in_head = False
        self._received = self._body_bytes = 0
        super().on_headers_complete()

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next head."""
        if self._offers_upgrade:
            return
        if self._deadline is not None:
            self._cancel_deadline()
        self._in_head = True
        self._received = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Limit the time of a body that is still incomplete, and of an answer that is not read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writes()
        elif not self._in_head and self._deadline is None:
            self._deadline = self.loop.call_later(UNREAD_BODY_S, self._close)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        self._close()

    def pause_writing(self) -> None:
        """Watch whether the client reads."""
        super().pause_writing()
        self._watch_writes()

    def resume_writing(self) -> None:
        """Stop watching: the client reads."""
        self._cancel_write_watch()
        super().resume_writing()

    def _raise(self, refusal: GatewayError) -> None:
        """Refuse the request from a callback of the parser."""
        self._refusal = refusal
        raise ValueError(refusal.message)

    def _end_head(self) -> None:
        """Close a connection whose head took too long. A silent one gets no answer."""
        self._deadline = None
        if self._received:
            self._refuse(HeadTimeout(f"The head of the request was not complete after {HEAD_S:g} s"))
        else:
            self._close()

    def _refuse(self, refusal: GatewayError) -> None:
        """Answer with an error and close. If another answer is under way on this connection, close after that one."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._answer(refusal)
        elif self._in_head:
            self._discards = True
            cycle.keep_alive = False
        elif cycle.response_started or self.pipeline:
            self.transport.abort()
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._answer(refusal)

    def _answer(self, refusal: GatewayError) -> None:
        self._discards = True
        self._cancel_deadline()
        body = openai_error(refusal)
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            **refusal.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(STATUS_LINE[refusal.status] + lines.encode("latin-1") + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)

    def _close(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
            self._watch_writes()

    def _watch_writes(self) -> None:
        if self._write_watch is None:
            self._unsent = self.transport.get_write_buffer_size()
            self._write_watch = self.loop.call_later(WRITE_STALL_S, self._check_writes)

    def _check_writes(self) -> None:
        """Close the connection if the client has read nothing since the last check."""
        self._write_watch = None
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent:
            self.transport.abort()
        elif unsent:
            self._watch_writes()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cancel_write_watch(self) -> None:
        if self._write_watch is not None:
            self._write_watch.cancel()
            self._write_watch = None


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The head of the request has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields")
