import random

import pytest

from gateway.scheduling.learned_limit import LearnedLimit


class Server:
    """Has `slots` of equal speed: a request beyond them waits for its turn; with `refuses`, it is refused instead."""

    def __init__(self, slots, ttft_s=0.1, service_s=5.0, refuses=False, noise=0.3):
        self.slots, self.ttft_s, self.service_s, self.refuses = slots, ttft_s, service_s, refuses
        self.noise = noise
        self.random = random.Random(7)

    def ask(self, limit, running):
        if self.refuses and running >= self.slots:
            limit.note(running, None, full=True)
            return
        waiting_s = max(0, running + 1 - self.slots) * self.service_s / self.slots
        limit.note(running, self.random.lognormvariate(0, self.noise) * self.ttft_s + waiting_s)


def driven(limit, server, requests):
    """Fill the server, then keep it as full as the limit allows; return the limits on the way."""
    limits = []
    for running in range(requests):
        server.ask(limit, min(running, limit.limit - 1))
        limits.append(limit.limit)
    return limits


def settled(limits):
    return limits[len(limits) // 2 :]


@pytest.mark.parametrize("slots", [4, 32, 200])
def test_the_limit_finds_the_engines_room(slots):
    limits = settled(driven(LearnedLimit(), Server(slots), 6_000))
    assert 0.6 * slots <= sum(limits) / len(limits) <= 1.5 * slots
    assert max(limits) <= 2 * slots + 2


@pytest.mark.parametrize("slots", [4, 32, 200])
def test_refusals_keep_it_under_what_the_engine_takes(slots):
    limits = settled(driven(LearnedLimit(), Server(slots, refuses=True), 6_000))
    assert 0.6 * slots <= sum(limits) / len(limits) <= slots + 1


def test_a_far_too_high_start_is_soon_mended():
    limit = LearnedLimit(start=500)
    driven(limit, Server(20), 3_000)
    assert limit.limit <= 40


def test_a_burst_of_refusals_counts_once():
    limit = LearnedLimit(start=100)
    for _ in range(50):
        limit.note(60, None, full=True)
    assert limit.limit == 54


def test_a_limit_that_is_not_used_does_not_grow():
    limit = LearnedLimit(start=40)
    for _ in range(1_000):
        limit.note(3, 0.1)
    assert limit.limit == 40


def test_an_engine_that_became_slower_is_not_taken_for_full_for_ever():
    limit, server = LearnedLimit(), Server(64)
    driven(limit, server, 6_000)
    server.ttft_s = 0.5
    assert min(settled(driven(limit, server, 12_000))) >= 0.5 * 64


def test_an_engine_that_lost_most_of_its_room_gets_less():
    limit, server = LearnedLimit(), Server(100)
    driven(limit, server, 6_000)
    server.slots = 10
    assert max(settled(driven(limit, server, 6_000))) <= 22


def test_a_full_batch_that_is_slower_by_itself_is_not_full():
    limit = LearnedLimit(most=128)
    for _ in range(6_000):
        limit.note(limit.limit - 1, 0.1 * (1 + 0.8 * limit.limit / 128))
    assert limit.limit == 128


def test_differences_that_are_no_queues_do_not_count():
    limit = LearnedLimit(most=64)
    for number in range(5_000):
        limit.note(limit.limit - 1, 0.001 if number < 100 else 0.015)
    assert limit.limit == 64


@pytest.mark.parametrize("full", [True, False])
def test_it_never_leaves_its_bounds(full):
    limit = LearnedLimit(most=10)
    for seconds in (0.1, 1000.0, 0.1):
        for _ in range(200):
            limit.note(0 if full else limit.limit - 1, seconds, full=full)
            assert 1 <= limit.limit <= 10


def test_an_answer_that_tells_no_time_teaches_nothing():
    limit = LearnedLimit(start=10)
    for _ in range(100):
        limit.note(9, None)
    assert limit.limit == 10
