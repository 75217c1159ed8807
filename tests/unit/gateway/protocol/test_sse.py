import pytest

from gateway.errors import EventTooLarge
from gateway.protocol import sse
from gateway.protocol.sse import StreamScanner, is_event_stream

TOKEN = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
ERROR = b'data: {"error":{"message":"out of memory"}}\n\n'
DONE = b"data: [DONE]\n\n"


def scanned(*chunks, hide_usage=False):
    scanner = StreamScanner(hide_usage=hide_usage)
    for chunk in chunks:
        scanner.feed(chunk)
    return scanner


def test_an_event_is_held_until_it_is_whole():
    scanner = StreamScanner(hide_usage=False)
    assert scanner.feed(TOKEN[:-1]) == b""
    assert scanner.feed(TOKEN[-1:] + b"data:") == TOKEN
    assert scanner.close() == b"data:"


def test_closing_twice_gives_the_rest_once():
    scanner = scanned(b"data: half")
    assert (scanner.close(), scanner.close()) == (b"data: half", b"")


@pytest.mark.parametrize(
    ("stream", "succeeded"),
    [
        (TOKEN + LAST + DONE, True),
        (TOKEN + LAST, True),
        (TOKEN + DONE, True),
        (TOKEN, False),
        (TOKEN + ERROR + DONE, False),
        (LAST + ERROR, False),
        (b"", False),
    ],
)
def test_a_stream_succeeds_by_its_end_alone(stream, succeeded):
    assert scanned(stream).succeeded is succeeded


def test_a_token_in_the_chunk_of_the_error_is_still_forwarded():
    scanner = StreamScanner(hide_usage=False)
    assert scanner.feed(TOKEN + ERROR + TOKEN) == TOKEN
    assert scanner.error == "out of memory"


def test_what_comes_in_a_later_chunk_than_the_error_is_not_forwarded():
    scanner = scanned(ERROR)
    assert scanner.feed(TOKEN) == b""
    assert scanner.feed(b"data: half") == b""
    assert scanner.close() == b""


def test_usage_is_hidden_from_a_client_that_did_not_ask():
    scanner = StreamScanner(hide_usage=True)
    assert scanner.feed(TOKEN + USAGE + DONE) == TOKEN + DONE
    assert (scanner.usage.prompt_tokens, scanner.usage.completion_tokens) == (7, 3)


def test_usage_that_comes_with_a_token_is_not_hidden():
    event = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}\n\n'
    assert StreamScanner(hide_usage=True).feed(event) == event


def test_a_token_that_reads_choices_counts_once():
    assert scanned(b'data: {"choices":[{"delta":{"content":"choices"}}]}\n\n').events == 1


def test_an_event_without_choices_is_no_token():
    assert scanned(b'data: {"choices":[],"prompt_filter_results":[{}]}\n\n' + TOKEN).events == 1


def test_an_event_of_several_data_lines_is_read_as_one():
    scanner = scanned(b'data: {"choices": [{\ndata: "finish_reason": "stop"}]}\n\n')
    assert (scanner.events, scanner.finish_reason) == (1, "stop")


def test_a_cut_answer_stays_cut_whatever_its_other_choices_say():
    event = b'data: {"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}\n\n'
    assert scanned(event).finish_reason == "length"


def test_an_event_without_end_is_too_large(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 64)
    scanner = scanned(b"data: " + b"x" * 58)
    with pytest.raises(EventTooLarge, match="more than 64 bytes"):
        scanner.feed(b"x")


def test_many_events_may_be_larger_than_one(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", len(TOKEN))
    assert scanned(TOKEN * 100).events == 100


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_end_in_any_of_three_ways(line_end, size):
    stream = (b"\xef\xbb\xbf" + TOKEN + TOKEN + USAGE + LAST).replace(b"\n", line_end)
    scanner = StreamScanner(hide_usage=True)
    forwarded = b"".join([scanner.feed(stream[at : at + size]) for at in range(0, len(stream), size)])
    shown = (b"\xef\xbb\xbf" + TOKEN + TOKEN + LAST).replace(b"\n", line_end)
    assert forwarded + scanner.close() == shown
    assert (scanner.events, scanner.usage.prompt_tokens, scanner.finish_reason) == (3, 7, "stop")


@pytest.mark.parametrize("chunk", [b": keep-alive\n\n", b"\n\n", b"id: 7\n\n", b"data:\n\n", b"event: ping\n\n"])
def test_an_answer_begins_with_the_first_data(chunk):
    scanner = scanned(chunk)
    assert not scanner.begun
    scanner.feed(TOKEN)
    assert scanner.begun


def of_two(index, reason):
    finish = "null" if reason is None else f'"{reason}"'
    return f'data: {{"choices":[{{"index":{index},"delta":{{}},"finish_reason":{finish}}}]}}\n\n'.encode()


@pytest.mark.parametrize(
    ("stream", "succeeded"),
    [
        (of_two(0, "stop") + of_two(1, "stop") + DONE, True),
        (of_two(0, "stop") + of_two(1, "length"), True),
        (of_two(0, "stop") + of_two(1, None) + DONE, False),
        (of_two(0, None) + of_two(1, "stop"), False),
        (of_two(0, "stop"), False),
        (of_two(0, "stop") + DONE, True),  # an engine that gives one answer only
        (of_two(0, None) + of_two(1, None) + DONE, True),  # an engine that reports no reasons
    ],
)
def test_all_answers_must_finish(stream, succeeded):
    scanner = StreamScanner(hide_usage=False, answers=2)
    scanner.feed(stream)
    assert scanner.succeeded is succeeded


def test_a_large_event_in_small_chunks_is_joined_once(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10**6)
    scanner = StreamScanner(hide_usage=False)
    event = b'data: {"choices":[{"delta":{"content":"' + b"a" * 100_000 + b'"}}]}\n\n'
    assert b"".join([scanner.feed(event[at : at + 10]) for at in range(0, len(event), 10)]) == event


@pytest.mark.parametrize("kind", ["text/event-stream", "Text/Event-Stream; charset=UTF-8", "TEXT/EVENT-STREAM;x"])
def test_media_types_are_compared_without_case(kind):
    assert is_event_stream(kind)
    assert not is_event_stream("application/json")


def test_comments_before_the_answer_come_with_its_first_event():
    scanner = StreamScanner(hide_usage=False)
    assert scanner.feed(b": one\n\n") + scanner.feed(b"\n\n: two\n\n") == b""
    assert scanner.feed(TOKEN) == b": one\n\n\n\n: two\n\n" + TOKEN


def test_endless_comments_are_not_held(monkeypatch):
    monkeypatch.setattr(sse, "MAX_HELD_BYTES", 100)
    scanner = scanned(*[b": keep-alive\n\n"] * 100)
    assert len(scanner.feed(TOKEN)) <= 100 + len(TOKEN)
