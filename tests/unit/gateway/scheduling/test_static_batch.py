from gateway.scheduling.batch_time import StepSumTime
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.scheduling.static_batch import StaticLimits, form_static_batch
from gateway.scheduling.step_time import StepTimePrior

TIME = StepSumTime(StepTimePrior(base_s=0.044, per_sequence_s=2e-4, per_kv_token_s=5e-7, per_prompt_token_s=2e-4))


def request(id, *, output=100, prompt=50, arrival=0.0, sequences=1, spread=1.0):
    quantiles = tuple(output * spread**score for score in (-1.28, -0.67, 0, 0.67, 1.28, 1.64))
    return Request(
        id, "m", prompt, LengthQuantiles.of(quantiles), arrival_s=arrival, deadline_s=1e9, sequences=sequences
    )


def formed(head, candidates, *, now=10.0, kv=38_000, size=None):
    return [one.id for one in form_static_batch(head, candidates, StaticLimits(kv, size), now, TIME)]


def test_equal_requests_share_a_batch():
    assert formed(request("a"), [request("b"), request("c")]) == ["a", "b", "c"]


def test_long_answer_does_not_join_short_ones():
    shorts = [request(f"s{i}", output=20) for i in range(5)]
    assert formed(shorts[0], [request("long", output=900), *shorts[1:]]) == ["s0", "s1", "s2", "s3", "s4"]


def test_request_that_waited_long_joins_a_batch_of_another_length():
    shorts = [request(f"s{i}", output=20, arrival=1000.0) for i in range(5)]
    patient = request("long", output=200, arrival=0.0)
    assert "long" in formed(shorts[0], [*shorts[1:], patient], now=1001.0)


def test_short_answers_fill_a_long_batch():
    assert formed(request("long", output=500), [request("short", output=20)]) == ["long", "short"]


def test_uncertain_answer_is_planned_as_a_long_one():
    sure = [request(f"s{i}", output=50) for i in range(6)]
    assert "unsure" in formed(sure[0], [request("unsure", output=50), *sure[1:]])
    assert "unsure" not in formed(sure[0], [request("unsure", output=50, spread=8.0), *sure[1:]])


def test_memory_is_planned_for_the_high_quantile():
    sure, unsure = request("a", output=100), request("b", output=100, spread=1.5)
    assert formed(sure, [unsure], kv=2 * (50 + 120)) == ["a"]
    assert formed(sure, [unsure], kv=2 * (50 + 300)) == ["a", "b"]


def test_batch_is_at_most_as_large_as_the_engine_allows():
    assert len(formed(request("a"), [request(str(i)) for i in range(20)], size=7)) == 7


def test_each_answer_to_one_prompt_is_a_row():
    assert formed(request("a"), [request("four", sequences=4), request("b")], size=4) == ["a", "b"]


def test_head_goes_even_if_it_does_not_fit():
    assert formed(request("a", prompt=500), [request("b")], kv=100) == ["a"]


def test_unknown_memory_is_no_bound():
    assert len(formed(request("a"), [request(str(i)) for i in range(300)], kv=None)) == 301


def test_search_ends_after_the_last_similar_request():
    read = []

    def endless():
        while True:
            read.append(1)
            yield request(f"long{len(read)}", output=900)

    assert formed(request("short", output=5), endless(), now=1e6) == ["short"]
    assert len(read) < 1000
