"""An HTTP/1.1 response, parsed by llhttp from the bytes of a connection."""

import httptools

from gateway.errors import NotHttpError

MAX_HEAD_BYTES = 256 * 1024
"""Largest status line with headers."""

FIRST_FINAL_STATUS = 200
"""A response with a lower status, such as "100 Continue", comes before the actual response."""


class Http1Response:
    """One response, as far as it has arrived. The `on_…` methods are callbacks of the parser.

    Attributes:
        status: HTTP status; 0 until the headers are complete.
        headers: names and values in the order of arrival.
        complete: whether the response has arrived as a whole.
        keep_alive: whether the connection can carry another response after this one.
        buffered_bytes: bytes of the body that have arrived and were not taken.
    """

    __slots__ = (
        "_ends_with_connection",
        "_fed_bytes",
        "_parser",
        "_parts",
        "buffered_bytes",
        "complete",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keep_alive = True
        self.buffered_bytes = 0
        self._fed_bytes = 0
        self._parts: list[bytes] = []
        self._ends_with_connection = True
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse bytes from the connection.

        Raises:
            NotHttpError: the bytes are not HTTP/1.1, or the headers are too large.
        """
        if self._parser is None:  # bytes after the end of the response
            self.keep_alive = False
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise NotHttpError(f"not HTTP/1.1: {error}") from error
        self._fed_bytes += len(data)
        if not self.status and self._fed_bytes > MAX_HEAD_BYTES:
            raise NotHttpError(f"the headers of the response are over {MAX_HEAD_BYTES} bytes")
        if self.complete:
            self._parser = None  # parser and response refer to each other; this frees both without the collector

    def close(self) -> bool:
        """Note that the connection has closed. Return whether the response is complete."""
        self._parser = None
        self.complete = self.complete or (self.status > 0 and self._ends_with_connection)
        return self.complete

    def take(self) -> bytes:
        """Return the buffered part of the body, and remove it from the buffer."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.buffered_bytes = 0
        return body

    def on_message_begin(self) -> None:
        """Handle the begin of a response. A second one was not asked for."""
        if self.complete:
            self.keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Handle a header."""
        if self.complete:
            return
        self.headers.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """Handle the end of the headers."""
        if self.complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < FIRST_FINAL_STATUS:
            self.headers.clear()
            return
        self.status = status
        self.keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Handle a part of the body."""
        if not self.complete:
            self._parts.append(body)
            self.buffered_bytes += len(body)

    def on_message_complete(self) -> None:
        """Handle the end of the response."""
        self.complete = self.status > 0
