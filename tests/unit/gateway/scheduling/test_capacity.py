from itertools import count, pairwise

import pytest

from gateway.scheduling.capacity import FIT_MEMORY_S, LATE_IN_A_ROW, MARGIN, LearnedCapacity

STEP_S = 0.02
SPEED = 10_000
"""Prefill rate that the engine has shown, in prompt tokens per second."""
LONG_S = 2.0
"""A silence that is longer than the prefill of any prompt used here."""


class Engine:
    """An engine as the gateway observes it. `held` is the KV tokens of the requests that were sent.

    Two requests run from the start, and one of them keeps sending tokens.
    """

    def __init__(self):
        self.learned = LearnedCapacity()
        self.now, self.held = 0.0, 0
        self.names = (f"r{number}" for number in count())
        self.running = []
        for _ in range(2):
            self.answer_after(0.1, prompt=SPEED // 10)

    def send(self, prompt=100, fresh=None):
        name = next(self.names)
        self.learned.on_dispatch(name, prompt, prompt if fresh is None else fresh, self.now)
        self.held += prompt
        return name

    def wait(self, seconds, *, streaming=True):
        """Let time pass while some answer sends tokens."""
        end_s = self.now + seconds
        while streaming and self.now < end_s:
            self.now = min(end_s, self.now + 0.1)
            self.learned.on_progress(STEP_S, self.now)
        self.now = end_s

    def begin(self, name):
        self.learned.on_progress(STEP_S, self.now)
        self.learned.on_first_token(name, self.held, STEP_S, self.now)
        self.running.append(name)

    def end_one(self, holding=0, stay_s=1.0, *, streamed=True):
        self.held -= holding
        self.learned.on_progress(STEP_S, self.now)
        self.learned.on_finish(self.running.pop(0), stay_s, self.now, streamed=streamed)

    def answer_after(self, seconds, prompt=100, *, fresh=None, ending=False, streaming=True):
        """Send a request whose first token comes after this time, at the end of another request or not."""
        name = self.send(prompt, fresh)
        self.wait(seconds, streaming=streaming)
        if ending:
            self.end_one()
        self.begin(name)

    def keep_waiting(self, times=LATE_IN_A_ROW, prompt=100):
        for _ in range(times):
            self.answer_after(LONG_S, prompt, ending=True)


@pytest.fixture
def engine():
    return Engine()


def test_nothing_is_learned_from_an_engine_without_waiting_requests(engine):
    for _ in range(10):
        engine.answer_after(0.1, prompt=500, ending=True)
    assert engine.learned.tokens is None


def test_consecutive_late_first_tokens_show_the_capacity(engine):
    engine.keep_waiting(LATE_IN_A_ROW - 1)
    assert engine.learned.tokens is None
    engine.keep_waiting(1)
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)


def test_first_token_in_time_restarts_the_count(engine):
    engine.keep_waiting(LATE_IN_A_ROW - 1)
    engine.answer_after(0.1)
    engine.keep_waiting(LATE_IN_A_ROW - 1)
    assert engine.learned.tokens is None


def test_request_without_a_first_token_is_not_in_memory(engine):
    engine.keep_waiting(LATE_IN_A_ROW - 1)
    late = engine.send()
    engine.wait(LONG_S)
    held = engine.held
    behind = engine.send(prompt=5000)
    engine.held += 70  # its answer may come in one piece
    engine.learned.on_wait(behind, 5070)
    engine.end_one()
    engine.begin(late)
    assert engine.learned.tokens == pytest.approx(MARGIN * held)


def test_answer_in_one_piece_is_in_memory_when_a_later_one_starts(engine):
    engine.send(prompt=5000)
    engine.keep_waiting()
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)


def test_answers_in_one_piece_alone_teach_nothing(engine):
    learned = LearnedCapacity()
    for number in range(100):
        learned.on_dispatch(f"{number}", 1000, 1000, number)
        learned.on_progress(STEP_S, number)
        if number >= 50:
            learned.on_finish(f"{number - 50}", 50.0, number, streamed=False)
    assert learned.tokens is None


def test_nothing_is_learned_if_few_answers_stream(engine):
    for _ in range(100):
        engine.running.append("any")
        engine.end_one(streamed=False)
    engine.keep_waiting()
    assert engine.learned.tokens is None


# Other explanations of a delay


def test_delay_is_explained_by_the_prefill_of_earlier_prompts(engine):
    for _ in range(LATE_IN_A_ROW):
        engine.send(prompt=int(SPEED * LONG_S))
        engine.answer_after(LONG_S, ending=True)
    assert engine.learned.tokens is None


def test_delay_that_does_not_end_with_another_request_is_no_queue(engine):
    for _ in range(LATE_IN_A_ROW):
        engine.answer_after(LONG_S)
    assert engine.learned.tokens is None


def test_stalled_engine_is_not_a_full_engine(engine):
    for _ in range(LATE_IN_A_ROW):
        engine.answer_after(LONG_S, ending=True, streaming=False)
    assert engine.learned.tokens is None


def test_silence_before_the_dispatch_is_no_stall(engine):
    engine.now += 60.0
    engine.keep_waiting()
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)


def test_cached_prompt_does_not_show_the_prefill_rate(engine):
    engine.answer_after(0.05, prompt=20_000, fresh=10)
    for _ in range(LATE_IN_A_ROW):
        engine.answer_after(1.0, prompt=SPEED, ending=True)
    assert engine.learned.tokens is None


# Raising a limit for a trial


def limit_after_scrapes(engine, seconds, *, bound):
    for _ in range(seconds):
        engine.now += 1.0
        engine.learned.on_scrape(engine.now, bound=bound)
    return engine.learned.tokens


def test_limit_that_binds_grows_at_an_increasing_rate(engine):
    engine.keep_waiting()
    sizes = [limit_after_scrapes(engine, 10, bound=True) for _ in range(4)]
    growth = [after / before for before, after in pairwise(sizes)]
    assert 1.0 < growth[0] < growth[1] < growth[2]


def test_limit_that_does_not_bind_stays(engine):
    engine.keep_waiting()
    before = engine.learned.tokens
    assert limit_after_scrapes(engine, 60, bound=False) == before


def test_limit_that_is_far_too_low_is_corrected_within_some_dozen_mean_service_times(engine):
    for _ in range(100):
        engine.running.append("any")
        engine.end_one(stay_s=5.0)
    engine.keep_waiting()
    before = engine.learned.tokens
    assert limit_after_scrapes(engine, 5 * 24, bound=True) > 10 * before


def test_first_tokens_in_time_raise_the_limit_to_the_memory_in_use(engine):
    engine.keep_waiting()
    engine.answer_after(0.1, prompt=1000)
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)


def test_limit_that_grew_too_high_falls_when_requests_wait_in_the_engine(engine):
    engine.keep_waiting()
    assert limit_after_scrapes(engine, 100, bound=True) > 2 * MARGIN * engine.held
    engine.keep_waiting()
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)


def test_smaller_capacity_after_a_change_is_learned(engine):
    engine.answer_after(0.1, prompt=900)
    engine.keep_waiting()
    full = engine.held
    engine.end_one(holding=full // 2)
    engine.now += FIT_MEMORY_S
    engine.keep_waiting()
    assert engine.learned.tokens == pytest.approx(MARGIN * engine.held)
    assert engine.held < full
