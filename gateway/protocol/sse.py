"""Server-sent events on their way through: forwarded as they were read, looked at only where something may be in them.

A token's event is counted, not parsed. An event that mentions usage, an error or a reason to finish is decoded; the
test for that is a substring search, which cannot miss one and is now and then wrong the other way, at the price of a
decode.
"""

from gateway.errors import EventTooLarge
from gateway.protocol.answers import Usage, read_answer

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""One event may be this large (logprobs of many candidates are); a longer one means that it is no event stream."""


class StreamScanner:
    """Follow one stream chunk by chunk, whatever the chunks' borders; this one knows chat and text completions.

    Args:
        hide_usage: drop the chunk that carries only usage, since the gateway and not the client asked for it.

    Attributes:
        events: events with an answer's content so far; about one a token, to be corrected by `usage` at the end.
        usage: the engine's last count, once it came.
        finish_reason: why the answer ended, once it did.
        error: what an error event said; the stream then failed, and neither it nor what follows is forwarded.
        done: `[DONE]` was seen.
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
        """The stream came to its proper end. `[DONE]` after an error is a failure; some engines leave it out."""
        return self.error is None and (self.done or self.finish_reason is not None)

    def feed(self, chunk: bytes) -> bytes:
        """Take what was read; return what goes on to the client: all events that are whole by now.

        Raises:
            EventTooLarge: an event without an end.
        """
        data = self._tail + chunk if self._tail else chunk
        end = _end_of_last_event(data)
        self._tail = data[end:]
        if len(self._tail) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of over {MAX_EVENT_BYTES} bytes")
        whole = data[:end]
        if self.error is not None:
            return b""
        if not self._worth_a_look(whole):
            self.events += self._count(whole)
            return whole
        return b"".join(event for event in _split(whole) if self._look_at(event))

    def close(self) -> bytes:
        """Return what is left at the end of the stream: an event that its sender did not finish."""
        tail, self._tail = self._tail, b""
        return tail if self.error is None else b""

    def _look_at(self, event: bytes) -> bool:
        """Learn from one event; return whether it goes on to the client."""
        if self.error is not None:
            return False
        payload = _payload(event)
        if payload is None:
            return True
        if payload == b"[DONE]":
            self.done = True
            return True
        return self._learn(payload)

    def _worth_a_look(self, events: bytes) -> bool:
        """Whether some of the events have more to say than a token; a yes too many costs a decode."""
        return (
            b'"usage"' in events
            or b'"error"' in events
            or b"[DONE]" in events
            or events.count(b'"finish_reason"') != events.count(b'"finish_reason":null')
        )

    def _count(self, events: bytes) -> int:
        """Count the tokens of events that nobody looks at: inside a text quotes are escaped, so these are keys."""
        return events.count(b'"choices":[{') + events.count(b'"choices": [{')

    def _learn(self, payload: bytes) -> bool:
        """Learn from what one event says; return whether it goes on to the client."""
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
    """Index behind the last blank line; 0 where there is none. Lines end in LF or CRLF."""
    lf, crlf = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(lf + 2 if lf >= 0 else 0, crlf + 4 if crlf >= 0 else 0)


def _split(events: bytes) -> list[bytes]:
    """Cut behind every blank line, so that joining the parts gives the same bytes again."""
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
    """Join the event's data lines; None where it has none (a comment, a keep-alive)."""
    data = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(data) if data else None
