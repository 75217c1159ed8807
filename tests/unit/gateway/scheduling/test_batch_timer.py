import pytest

from gateway.scheduling.batch_time import BatchTimer
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

LENGTH = LengthQuantiles.of((10,) * 6)


def request(prompt=100, *, sequences=1):
    return Request("a", "m", prompt, LENGTH, 0.0, 1.0, sequences=sequences)


def watch_of(*batches):
    """Run batches of (members, tokens of the answers, seconds), one after the other."""
    watch, now = BatchTimer(), 0.0
    for members, tokens, seconds in batches:
        watch.begin(members, now)
        now += seconds
        for each in tokens:
            watch.finish_one(each)
        watch.end(now)
    return watch


def test_step_times_predict_before_the_first_batch():
    assert BatchTimer().time(4, 100, 200) > BatchTimer().time(1, 100, 200) > 0


def test_batch_that_took_longer_than_expected_is_learned_by_its_shape():
    members = [request(100), request(300, sequences=3)]
    watch = watch_of(*[(members, [50, 200], 60.0)] * 6)
    assert watch.time(4, 300, 200) == pytest.approx(60.0, rel=0.2)


def test_batch_that_took_the_expected_time_is_not_learned():
    expected_s = BatchTimer().time(2, 100, 200)
    assert len(watch_of(([request(), request()], [200, 150], expected_s)).time) == 0


@pytest.mark.parametrize("tokens", [[], [None, None], [0]])
def test_batch_without_a_finished_answer_is_not_learned(tokens):
    assert len(watch_of(([request()], tokens, 500.0)).time) == 0


def test_answers_of_one_batch_do_not_affect_the_next():
    assert len(watch_of(([request()], [200], 2.0), ([request()], [None], 500.0)).time) == 0


def test_end_without_a_start_is_ignored():
    watch = BatchTimer()
    watch.finish_one(200)
    watch.end(500.0)
    assert len(watch.time) == 0
