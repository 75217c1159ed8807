"""Server-sent events: the gateway forwards them unchanged and decodes only the few that it needs.

An event that carries a token is counted, not decoded. An event that may contain token counts, an error or a finish
reason is decoded. A substring search finds these events: it misses none, and a false match only costs one decode.

Comments and empty events are not part of an answer. The answer begins with the first event that has data.
"""

from gateway.errors import EventTooLarge
from gateway.protocol.answers import CompletionAnswer, Usage, failure_of, read_answer

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""Largest event, for example with the log probabilities of many candidates. A longer one is not an event stream."""

MAX_HELD_BYTES = 64 * 1024
"""Most bytes of comments that are held until the answer begins; if there are more, they are dropped."""

_BORDER_BYTES = 3
"""The bytes before a chunk that may belong to a blank line in it: the longest blank line has four bytes."""

_BOM = b"\xef\xbb\xbf"


def is_event_stream(content_type: str) -> bool:
    """Return whether a media type, perhaps with parameters, is that of an event stream.

    >>> is_event_stream("Text/Event-Stream; charset=UTF-8")
    True
    """
    return content_type[:17].lower() == "text/event-stream"


class StreamScanner:
    """Scans one stream of a chat or text completion, chunk by chunk; an event may span several chunks.

    Args:
        hide_usage: do not forward the event that carries only token counts: the gateway asked for it, not the client.
        answers: number of answers that the client asked for; all of them must finish.

    Attributes:
        begun: whether the answer has begun; before, there were only comments and empty events.
        events: events with content so far. An event carries about one token; `usage` has the exact number at the end.
        usage: the engine's latest token counts.
        finish_reason: why the answer ended.
        error: the message of an error event. The stream has failed; this event and later ones are not forwarded.
        done: whether `[DONE]` was received.
    """

    def __init__(self, *, hide_usage: bool, answers: int = 1) -> None:
        self.begun = False
        self.events = 0
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.error: str | None = None
        self.done = False
        self._hide_usage = hide_usage
        self._answers = answers
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._parts: list[bytes] = []
        self._size = 0
        self._border = b""
        self._held = b""

    @property
    def succeeded(self) -> bool:
        """Whether the answer is complete. Some engines do not send `[DONE]`; `[DONE]` after an error is a failure.

        Of several answers, each one that has started must finish; without `[DONE]`, all that were asked for. Some
        engines report no finish reason at all.
        """
        if self.error is not None:
            return False
        if self._answers == 1 or not self._finished:
            return self.done or self.finish_reason is not None
        return self._seen <= self._finished and (self.done or len(self._finished) >= self._answers)

    def feed(self, chunk: bytes) -> bytes:
        """Add a chunk; return the bytes to forward to the client: all events that are complete now.

        Comments before the answer are returned together with its first event.

        Raises:
            EventTooLarge: an event is larger than `MAX_EVENT_BYTES`.
        """
        data = chunk
        if self._parts:
            searched = self._border + chunk
            end = _end_of_last_event(searched)
            if end <= len(self._border):
                self._keep(chunk)
                return b""
            end += self._size - len(self._border)
            data = b"".join([*self._parts, chunk])
            self._parts, self._size, self._border = [], 0, b""
        else:
            end = _end_of_last_event(data)
        if end < len(data):
            self._keep(data[end:])
        whole = self._scan(data[:end])
        return whole if self.begun and not self._held else self._release(whole)

    def close(self) -> bytes:
        """Return what to forward of the last event, if no blank line ends the stream."""
        tail = b"".join(self._parts)
        self._parts, self._size, self._border = [], 0, b""
        events, self._held = self._held + self._scan(tail), b""
        return events if self.begun or self.error is None else b""

    def _release(self, events: bytes) -> bytes:
        """Return what to forward now: nothing until the answer begins."""
        events, self._held = self._held + events, b""
        if self.begun:
            return events
        self._held = events if len(events) <= MAX_HELD_BYTES else b""
        return b""

    def _keep(self, part: bytes) -> None:
        """Keep the start of an event until the rest comes."""
        self._parts.append(part)
        self._size += len(part)
        self._border = (self._border + part[-_BORDER_BYTES:])[-_BORDER_BYTES:]
        if self._size > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event of more than {MAX_EVENT_BYTES} bytes")

    def _scan(self, events: bytes) -> bytes:
        """Read whole events; return those to forward."""
        if self.error is not None:
            return b""
        if self.begun and not self._needs_decoding(events):
            self.events += self._count(events)
            return events
        return b"".join([event for event in _split(events) if self._scan_event(event)])

    def _scan_event(self, event: bytes) -> bool:
        """Read one event; return whether to forward it."""
        if self.error is not None:
            return False
        kind, payload = _fields(event if self.begun else event.removeprefix(_BOM))
        if payload is None:
            return True
        if payload == b"[DONE]":
            self.begun = self.done = True
            return True
        forwards = self._read(payload)
        if kind == b"error" and self.error is None:
            self.error = failure_of(payload.decode(errors="replace")) or "no reason given"
        self.begun = self.begun or self.error is None
        return forwards and self.error is None

    def _needs_decoding(self, events: bytes) -> bool:
        """Return whether an event may contain more than a token; a false match only costs a decode."""
        return (
            b'"usage"' in events
            or b'"error"' in events
            or b"[DONE]" in events
            or self._answers > 1
            or events.count(b'"finish_reason"') != events.count(b'"finish_reason":null')
            or names_error(events)
        )

    def _count(self, events: bytes) -> int:
        """Count the events that carry a token. Quotes inside a text are escaped, so the search finds only keys."""
        return events.count(b'"choices":[{') + events.count(b'"choices": [{')

    def _read(self, payload: bytes) -> bool:
        """Read the data of one event; return whether to forward it."""
        answer = read_answer(payload)
        if answer.failure is not None:
            self.error = answer.failure
            return False
        self.usage = answer.usage or self.usage
        self.finish_reason = answer.finish_reason or self.finish_reason
        if answer.choices:
            self.events += 1
            if self._answers > 1:
                self._note(answer)
            return True
        return not (self._hide_usage and answer.usage)

    def _note(self, answer: CompletionAnswer) -> None:
        """Note which of several answers have started and finished."""
        for choice in answer.choices or ():
            index = choice.index or 0
            if 0 <= index < self._answers:
                self._seen.add(index)
                if choice.finish_reason:
                    self._finished.add(index)


def names_error(events: bytes) -> bool:
    """Return whether an event may have the type `error`."""
    return b"event:" in events and (b"event: error" in events or b"event:error" in events)


def _end_of_last_event(data: bytes) -> int:
    """Return the index after the last blank line; 0 if there is none. Lines end in LF, CRLF or CR."""
    end = data.rfind(b"\n\n") + 2
    if b"\r" in data:
        end = max(end, data.rfind(b"\n\r\n") + 3 if b"\n\r\n" in data else 0, data.rfind(b"\r\r") + 2)
    return end if end > 1 else 0


def _split(events: bytes) -> list[bytes]:
    """Split after every blank line; the rest is the last part, and joined, the parts are the same bytes again."""
    parts: list[bytes] = []
    start = end = 0
    for line in events.splitlines(keepends=True):
        end += len(line)
        if not line.strip(b"\r\n"):
            parts.append(events[start:end])
            start = end
    if start < end:
        parts.append(events[start:])
    return parts


def _fields(event: bytes) -> tuple[bytes, bytes | None]:
    """Return the event's type, and its data lines, joined; the data is None for a comment or an empty event."""
    lines = event.splitlines()
    data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    kind = next((line[6:].strip() for line in lines if line.startswith(b"event:")), b"")
    return kind, b"\n".join(data) if any(data) else None
