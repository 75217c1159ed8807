"""For any stream and any cuts: the forwarded bytes and the usage that is read are the same."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.sse import StreamScanner

TREACHEROUS = [
    "choices",
    "usage",
    "error",
    "finish_reason",
    "data: [DONE]\n\n",
    "[DONE]",
    '"usage":{"completion_tokens":99}',
    '"error":{"message":"not one"}',
    '{"choices":[{"finish_reason":"stop"}]}',
    "\r\n\r\n",
    "ärger 🦙\u2028",
]
texts = st.one_of(st.sampled_from(TREACHEROUS), st.text(max_size=8))
counts = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)})


@dataclass(frozen=True)
class Event:
    """One event, and its content."""

    body: str | None  # None: a comment
    token: bool = False
    usage: tuple[int, int] | None = None
    usage_only: bool = False
    finish_reason: str | None = None
    error: str | None = None
    done: bool = False
    before: str = ""
    space: str = " "

    def rendered(self, line_end: str) -> bytes:
        line = ": keep-alive" if self.body is None else f"data:{self.space}{self.body}"
        return "".join(f"{text}{line_end}" for text in (*self.before.splitlines(), line, "")).encode()


@st.composite
def jsons(draw, fields):
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    return json.dumps(draw(fields), separators=separators, ensure_ascii=draw(st.booleans()))


@st.composite
def tokens(draw):
    reason = draw(st.sampled_from([None, None, None, "stop", "length"]))
    choice = {"index": 0, "delta": {"content": draw(texts)}}
    if reason or draw(st.booleans()):
        choice["finish_reason"] = reason
    usage = draw(st.one_of(st.none(), counts))
    fields = {"id": draw(texts), "choices": [choice]}
    if usage or draw(st.booleans()):
        fields["usage"] = usage
    usage_counts = usage and (usage["prompt_tokens"], usage["completion_tokens"])
    return Event(draw(jsons(st.just(fields))), token=True, finish_reason=reason, usage=usage_counts)


@st.composite
def usages(draw):
    usage = draw(counts)
    body = draw(jsons(st.just({"choices": [], "usage": usage})))
    return Event(body, usage=(usage["prompt_tokens"], usage["completion_tokens"]), usage_only=True)


@st.composite
def errors(draw):
    message = draw(texts.filter(bool))
    error = draw(st.sampled_from([message, {"message": message, "code": 500}]))
    return Event(
        draw(jsons(st.just({"error": error}))), error=message, before=draw(st.sampled_from(["", "event: error"]))
    )


others = st.sampled_from(
    [
        Event(None),
        Event("[DONE]", done=True),
        Event("[DONE]", done=True, space=""),
        Event('{"choices":[],"prompt_filter_results":[]}'),
        Event("no JSON at all", before="id: 7\nevent: ping"),
    ]
)
fine = st.lists(st.one_of(tokens(), tokens(), usages(), others), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n"])


@st.composite
def cut(draw, stream):
    places = draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    return [stream[start:end] for start, end in zip([0, *places], [*places, len(stream)], strict=True)]


def scan(chunks, *, hide_usage=False):
    scanner = StreamScanner(hide_usage=hide_usage)
    return b"".join([*map(scanner.feed, chunks), scanner.close()]), scanner


def learned(scanner):
    usage = scanner.usage and (scanner.usage.prompt_tokens, scanner.usage.completion_tokens)
    return scanner.events, usage, scanner.finish_reason, scanner.error, scanner.done


def said(events):
    """Return the content of the events, in order."""
    usage = reason = None
    for event in events:
        usage, reason = event.usage or usage, event.finish_reason or reason
    return sum(event.token for event in events), usage, reason, None, any(event.done for event in events)


@given(fine, line_ends, st.booleans(), st.data())
def test_forwarded_bytes_and_usage_do_not_depend_on_the_cuts(events, line_end, hide_usage, data):
    stream = b"".join(event.rendered(line_end) for event in events)
    forwarded, scanner = scan(data.draw(cut(stream)), hide_usage=hide_usage)

    visible = [event for event in events if not (hide_usage and event.usage_only)]
    assert forwarded == b"".join(event.rendered(line_end) for event in visible)
    assert learned(scanner) == said(events)


@given(fine, errors(), fine, line_ends, st.data())
def test_error_and_later_events_are_not_forwarded(before, error, after, line_end, data):
    stream = b"".join(event.rendered(line_end) for event in (*before, error, *after))
    forwarded, scanner = scan(data.draw(cut(stream)))

    answer_began = any(event.body is not None for event in before)  # comments before the answer are held
    assert forwarded == b"".join(event.rendered(line_end) for event in before if answer_began)
    assert scanner.error == error.error
    assert not scanner.succeeded
    assert learned(scanner)[:3] == said(before)[:3]


@given(fine, line_ends, st.binary(max_size=40), st.data())
def test_bytes_without_the_end_of_an_event_are_forwarded_unchanged(events, line_end, tail, data):
    stream = b"".join(event.rendered(line_end) for event in events) + tail
    forwarded, _ = scan(data.draw(cut(stream)))
    assert forwarded == stream


@given(texts, st.booleans())
def test_quoted_json_in_a_text_is_not_read_as_an_event(text, ensure_ascii):
    event = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=ensure_ascii, separators=(",", ":"))
    forwarded, scanner = scan([b"data: " + event.encode() + b"\n\n"], hide_usage=True)
    assert forwarded.endswith(event.encode() + b"\n\n")
    assert learned(scanner) == (1, None, None, None, False)


@given(st.binary(max_size=200), st.data())
def test_scanner_accepts_any_bytes(stream, data):
    forwarded, _ = scan(data.draw(cut(stream)))
    assert stream.startswith(forwarded)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_stream_cut_into_single_bytes_is_the_same_stream(line_end):
    events = [Event('{"choices":[{"delta":{"content":"é"}}]}', token=True), Event("[DONE]", done=True)]
    stream = b"".join(event.rendered(line_end) for event in events)
    forwarded, scanner = scan([stream[i : i + 1] for i in range(len(stream))])
    assert forwarded == stream
    assert learned(scanner) == said(events)
