"""Server-sent events: the gateway forwards them unchanged and decodes only the few that it needs.

An event that carries a token is counted, not decoded. An event that may contain token counts, an error or a finish
reason is decoded. A substring search finds these events: it misses none, and a false match only costs one decode.
"""

from gateway.errors import EventTooLarge
from gateway.protocol.answers import Usage, read_answer

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Largest event, for example with the log probabilities of many candidates. A longer one is not an event stream."""


class StreamScanner:
    """Scans one stream of a chat or text completion, chunk by chunk; an event may span several chunks.

    Args:
        hide_usage: do not forward the event that carries only token counts: the gateway asked for it, not the client.

    Attributes:
        events: events with content so far. An event carries about one token; `usage` has the exact number at the end.
        usage: the engine's latest token counts.
        finish_reason: why the answer ended.
        error: the message of an error event. The stream has failed; this event and later ones are not forwarded.
        done: whether `[DONE]` was received.
    """

    def __init__(self, *, hide_usage: bool) -> None:
        self.events = 0
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.done = False
        self._hide_usage = hide_usage
        self._tail = b""

    @property
    def succeeded(self) -> bool:
        """Whether the answer is complete. Some engines do not send `[DONE]`; `[DONE]` after an error is a failure."""
        return self.error is None and (self.done or self.finish_reason is not None)

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk; return the bytes to forward to the client: all events that are complete now.

        Raises:
            EventTooLarge: an event is larger than `MAX_EVENT_BYTES`.
        """
        data = self._tail + chunk if self._tail else chunk
        end = _end_of_last_event(data)
        self._tail = data[end:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")
        whole = data[:end]
        if self.error is not None:
            return b""
        if not self._needs_decoding(whole):
            self.events += self._count(whole)
            return whole
        return b"".join(event for event in _split(whole) if self._scan_event(event))

    def close(self) -> bytes:
        """Return the incomplete event at the end of the stream, if there is one."""
        tail, self._tail = self._tail, b""
        return tail if self.error is None else b""

    def _scan_event(self, event: bytes) -> bool:
        """Read one event; return whether to forward it."""
        if self.error is not None:
            return False
        payload = _payload(event)
        if payload is None:
            return True
        if payload == b"[DONE]":
            self.done = True
            return True
        return self._read(payload)

    def _needs_decoding(self, events: bytes) -> bool:
        """Return whether an event may contain more than a token; a false match only costs a decode."""
        return (
            b'"usage"' in events
            or b'"error"' in events
            or b"[DONE]" in events
            or events.count(b'"finish_reason"') != events.count(b'"finish_reason":null')
        )

    def _count(self, events: bytes) -> int:
        """Count the events that carry a token. Quotes inside a text are escaped, so the search finds only keys."""
        return events.count(b'"choices":[{') + events.count(b'"choices": [{')

    def _read(self, payload: bytes) -> bool:
        """Read the data of one event; return whether to forward it."""
        answer = read_answer(payload)
        if answer is None:
            return True
        if answer.failure is not None:
            self.error = answer.failure
            return False
        self.usage = answer.usage or self.usage
        self.finish_reason = answer.finish_reason or self.finish_reason
        if answer.choices:
            self.events += 1
            return True
        return not (self._hide_usage and answer.usage)


def _end_of_last_event(data: bytes) -> int:
    """Return the index after the last blank line; 0 if there is none. Lines end in LF or CRLF."""
    lf, crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


def _split(events: bytes) -> list[bytes]:
    """Split after every blank line; joined, the parts are the same bytes again."""
    parts: list[bytes] = []
    start = 0
    for line_start, line in _lines(events):
        if not line.strip(b"\r\n"):
            parts.append(events[start : line_start + len(line)])
            start = line_start + len(line)
    return parts


def _lines(data: bytes) -> list[tuple[int, bytes]]:
    lines, at = [], 0
    for line in data.splitlines(keepends=True):
        lines.append((at, line))
        at += len(line)
    return lines


def _payload(event: bytes) -> bytes | None:
    """Return the event's data lines, joined; None if it has none, as a comment or a keep-alive."""
    data = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(data) if data else None
