"""An engine's answer in HTTP/1.1, from the bytes of its connection; llhttp parses them."""

import httptools

from gateway.errors import NotHttpError

MAX_HEAD_BYTES = 256 * 1024
"""Of an answer that has not come to the end of its headers."""

FIRST_FINAL_STATUS = 200
"""What comes with a lower one, as "100 Continue", is not the answer yet."""


class Answer:
    """One answer, as far as it has come.

    Attributes:
        status: 0 before its head has come.
        headers: names and values, as they came.
        complete: nothing more belongs to it.
        keeps: the connection may carry another one after it.
        size: bytes of the body that nobody has taken.
    """

    __slots__ = (
        "_ends_with_connection",
        "_fed",
        "_parser",
        "_parts",
        "complete",
        "headers",
        "keeps",
        "size",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keeps = True
        self.size = 0
        self._fed = 0
        self._parts: list[bytes] = []
        self._ends_with_connection = True
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take in what came.

        Raises:
            NotHttpError: it cannot go on like this.
        """
        if self._parser is None:  # more than was asked for
            self.keeps = False
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise NotHttpError(f"not HTTP/1.1: {error}") from error
        self._fed += len(data)
        if not self.status and self._fed > MAX_HEAD_BYTES:
            raise NotHttpError(f"an answer's head of more than {MAX_HEAD_BYTES} bytes")
        if self.complete:
            self._parser = None  # it holds this answer, and is held by it

    def end(self) -> bool:
        """Take in that the connection has ended. Returns whether the answer is whole by it."""
        self._parser = None
        self.complete = self.complete or (self.status > 0 and self._ends_with_connection)
        return self.complete

    def take(self) -> bytes:
        """Return what has come of the body and was not taken yet, in one piece."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return body

    def on_message_begin(self) -> None:
        """Hear from the parser that an answer begins."""
        if self.complete:  # more than was asked for
            self.keeps = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Hear of a header."""
        if self.complete:
            return
        self.headers.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """Hear that the head has come."""
        if self.complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < FIRST_FINAL_STATUS:
            self.headers.clear()
            return
        self.status = status
        self.keeps = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Hear of a part of the body."""
        if not self.complete:
            self._parts.append(body)
            self.size += len(body)

    def on_message_complete(self) -> None:
        """Hear that the answer has come to its end."""
        self.complete = self.status > 0
