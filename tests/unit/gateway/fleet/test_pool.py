import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager

import pytest

from backends.base import BackendUnreachableError, ModelCard, Snapshot
from gateway.errors import (
    BackendFull,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    BatchSplit,
    ModelNotFound,
    NoBackend,
    ProtocolError,
)
from gateway.fleet.breaker import FAILURES_TO_OPEN, FIRST_BACKOFF_S, RAMP_S, RAMP_START, Circuit
from gateway.fleet.entry import FAILURES_TO_UNHEALTHY
from gateway.fleet.pool import MAX_INTERVAL_FACTOR, BackendPool
from gateway.scheduling.messages import BackendRemoved
from tests.unit.gateway.fake_engines import FakeBackend

AWAY = BackendUnreachableError("away")


def serving(*models, **told):
    return Snapshot(tuple(ModelCard(model, 4096) for model in models or ("llama",)), **told)


class Watched:
    """A pool and what it told."""

    def __init__(self, *backends, interval_s=1.0):
        self.seen = []
        self.gone = []
        self.failed = []
        self.circuits = []
        self.in_flight = defaultdict(int)
        self.pool = BackendPool(
            backends,
            post=self.hear,
            monotonic=lambda: asyncio.get_running_loop().time(),
            interval_s=interval_s,
            on_scrape_failure=lambda name, _: self.failed.append(name),
            in_flight=self.in_flight.__getitem__,
            on_circuit=lambda name, circuit: self.circuits.append((name, circuit)),
        )

    def hear(self, message):
        if isinstance(message, BackendRemoved):
            self.gone.append(message.name)
        else:
            self.seen.append(message.state)

    def answers(self, name):
        self.pool.record_answer(name, asyncio.get_running_loop().time(), complete=True)

    def fails(self, name, error):
        self.pool.record_failure(name, error, asyncio.get_running_loop().time())

    async def look(self, times=1):
        for _ in range(times):
            for entry in self.pool.entries.values():
                await self.pool.scrape(entry)
        return self.seen[-1].healthy if self.seen else None

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.pool.run())
        yield
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class SlowBackend(FakeBackend):
    """Takes 0.9 s for a look, as vLLM does under load."""

    async def scrape(self):
        await asyncio.sleep(0.9)
        return await super().scrape()


async def test_the_scheduler_hears_what_a_look_showed():
    backend = FakeBackend(
        "gpu", serving("llama", kv_capacity_tokens=9000, kv_used_tokens=70, kv_block_tokens=16), max_concurrency=8
    )
    watched = Watched(backend)
    await watched.look()
    (state,) = watched.seen
    assert (state.name, state.healthy, state.models) == ("gpu", True, frozenset({"llama"}))
    assert (state.kv_capacity_tokens, state.kv_used_tokens, state.kv_block_tokens) == (9000, 70, 16)
    assert (state.max_concurrency, state.max_model_len) == (8, 4096)


async def test_the_scheduler_hears_how_many_run_and_wait_and_when_that_was():
    watched = Watched(FakeBackend("gpu", serving(running=3, waiting=2, preemptions=1), AWAY))
    await asyncio.sleep(5)
    await watched.look()
    await asyncio.sleep(5)
    await watched.look()
    for state in watched.seen:
        assert (state.running, state.waiting, state.preemptions, state.scraped_s) == (3, 2, 1, 5)


@pytest.mark.parametrize(
    ("kind", "static", "reserving"),
    [("vllm", False, False), ("openai", False, False), ("tgi", False, True), ("static", True, False)],
)
async def test_the_scheduler_hears_how_an_engine_batches(kind, static, reserving):
    watched = Watched(FakeBackend("gpu", serving(), kind=kind))
    await watched.look()
    assert (watched.seen[0].static, watched.seen[0].reserving) == (static, reserving)


async def test_a_backend_is_not_healthy_before_it_has_answered():
    watched = Watched(FakeBackend("gpu", AWAY, serving()))
    assert not watched.pool.ready
    assert await watched.look() is False
    assert watched.failed == ["gpu"]
    assert await watched.look() is True
    assert watched.pool.ready


async def test_one_look_may_fail_and_two_may_not():
    watched = Watched(FakeBackend("gpu", serving(), AWAY))
    assert await watched.look(FAILURES_TO_UNHEALTHY) is True
    assert await watched.look() is False
    assert not watched.pool.ready


async def test_a_backend_that_answers_again_is_healthy_at_once():
    watched = Watched(FakeBackend("gpu", serving(), AWAY, AWAY, AWAY, serving()))
    assert await watched.look(4) is False
    assert await watched.look() is True
    assert await watched.look() is True


async def test_a_backend_that_is_away_is_remembered_as_it_was():
    watched = Watched(FakeBackend("gpu", serving("llama", kv_capacity_tokens=9000), AWAY))
    await watched.look(5)
    assert (watched.seen[-1].models, watched.seen[-1].kv_capacity_tokens) == (frozenset({"llama"}), 9000)


async def test_the_shortest_context_of_a_backend_s_models_counts():
    snapshot = Snapshot((ModelCard("a", 100), ModelCard("b", 50), ModelCard("c")))
    watched = Watched(FakeBackend("gpu", snapshot))
    await watched.look()
    assert watched.seen[-1].max_model_len == 50


async def test_all_models_of_all_backends_are_one_list():
    watched = Watched(FakeBackend("gpu-0", serving("a", "b")), FakeBackend("gpu-1", serving("b", "c")))
    assert watched.pool.models() == {}
    await watched.look()
    assert list(watched.pool.models()) == ["a", "b", "c"]


async def test_a_served_model_s_card_is_given():
    watched = Watched(FakeBackend("gpu", serving("llama")))
    await watched.look()
    assert watched.pool.require("llama") == ModelCard("llama", 4096)


async def test_a_model_that_nobody_has_is_not_found():
    watched = Watched(FakeBackend("gpu", serving("llama")))
    await watched.look()
    with pytest.raises(ModelNotFound, match="'mistral' does not exist") as refusal:
        watched.pool.require("mistral")
    assert refusal.value.param == "model"


async def test_a_model_whose_backend_is_away_has_no_backend():
    watched = Watched(FakeBackend("gpu", serving("llama"), AWAY))
    await watched.look(3)
    with pytest.raises(NoBackend):
        watched.pool.require("llama")


async def test_a_model_that_an_unknown_backend_might_have_is_not_denied():
    watched = Watched(FakeBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", AWAY))
    await watched.look(3)
    assert watched.pool.require("llama").id == "llama"
    with pytest.raises(NoBackend):
        watched.pool.require("mistral")


async def test_without_backends_there_is_no_backend():
    with pytest.raises(NoBackend):
        Watched().pool.require("llama")


async def test_the_name_of_a_model_is_not_repeated_at_length():
    watched = Watched(FakeBackend("gpu", serving()))
    await watched.look()
    with pytest.raises(ModelNotFound) as refusal:
        watched.pool.require("x" * 10**6)
    assert len(refusal.value.message) < 300


async def test_a_backend_is_looked_at_again_and_again():
    backend = FakeBackend("gpu", serving())
    watched = Watched(backend, interval_s=2.0)
    async with watched.running():
        await asyncio.sleep(100)
    assert 40 <= backend.scrapes <= 60


async def test_a_backend_that_stays_away_is_asked_less_often():
    backend = FakeBackend("gpu", AWAY)
    async with Watched(backend, interval_s=1.0).running():
        await asyncio.sleep(1000)
    assert 1000 / MAX_INTERVAL_FACTOR * 0.9 <= backend.scrapes <= 1000 / MAX_INTERVAL_FACTOR * 1.3


async def test_one_backend_s_absence_does_not_keep_from_looking_at_another():
    here, away = FakeBackend("gpu-0", serving()), FakeBackend("gpu-1", AWAY)
    async with Watched(here, away).running():
        await asyncio.sleep(100)
    assert here.scrapes > 5 * away.scrapes


@pytest.mark.parametrize("error", [BackendUnavailable("gone"), BackendTimeout("silent")])
async def test_a_backend_on_which_a_request_failed_is_looked_at_at_once(error):
    backend = FakeBackend("gpu", serving(), AWAY)
    watched = Watched(backend, interval_s=1000.0)
    async with watched.running():
        await asyncio.sleep(1)
        assert backend.scrapes == 1
        watched.fails("gpu", error)
        await asyncio.sleep(1)
        assert backend.scrapes == 2


@pytest.mark.parametrize("error", [BackendRefused("no", status=400, type="x"), ProtocolError("what?")])
async def test_a_refusal_is_no_reason_to_look(error):
    backend = FakeBackend("gpu", serving())
    watched = Watched(backend, interval_s=1000.0)
    async with watched.running():
        await asyncio.sleep(1)
        watched.fails("gpu", error)
        await asyncio.sleep(1)
        assert backend.scrapes == 1


async def test_a_failure_on_a_backend_that_is_no_more_is_nothing():
    watched = Watched()
    watched.fails("gone", BackendUnavailable("gone"))
    assert watched.failed == []


async def test_a_pool_without_backends_stays_up():
    async with Watched().running():
        await asyncio.sleep(10)


# What its requests tell of a backend


SICK = {
    "gone": lambda: BackendUnavailable("gone"),
    "silent": lambda: BackendTimeout("silent"),
    "garbled": lambda: ProtocolError("what?"),
    "broken": lambda: BackendRefused("boom", status=500, type="x"),
}
FINE = {
    "full": lambda: BackendFull("full"),
    "refused": lambda: BackendRefused("no", status=400, type="x"),
    "unknown route": lambda: BackendRefused("what?", status=501, type="x"),
    "batch too large": lambda: BatchSplit("halves"),
}


def fails(watched, name, error=SICK["broken"], times=FAILURES_TO_OPEN):
    """So many requests fail on a backend, each in its own way."""
    errors = [error() for _ in range(times)]
    for each in errors:
        watched.fails(name, each)


async def pair(*, kind="openai"):
    """Two backends of one model, looked at once."""
    looks = {name: FakeBackend(name, serving("llama"), kind=kind) for name in ("gpu-0", "gpu-1")}
    watched = Watched(*looks.values())
    await watched.look()
    return watched


def last(watched, name):
    return [state for state in watched.seen if state.name == name][-1]


@pytest.mark.parametrize("error", SICK.values(), ids=SICK)
async def test_a_backend_that_answers_its_looks_and_fails_its_requests_gets_no_more(error):
    watched = await pair()
    fails(watched, "gpu-0", error, FAILURES_TO_OPEN - 1)
    assert last(watched, "gpu-0").healthy
    fails(watched, "gpu-0", error, 1)
    assert not last(watched, "gpu-0").healthy
    assert watched.pool.entries["gpu-0"].healthy
    assert watched.circuits == [("gpu-0", Circuit.OPEN)]
    await watched.look()
    assert (last(watched, "gpu-0").healthy, last(watched, "gpu-1").healthy) == (False, True)


@pytest.mark.parametrize("error", FINE.values(), ids=FINE)
async def test_a_full_backend_and_a_bad_request_are_no_failures(error):
    watched = await pair()
    fails(watched, "gpu-0", error, 10 * FAILURES_TO_OPEN)
    assert last(watched, "gpu-0").healthy
    assert watched.circuits == []


async def test_a_backend_is_tried_again_with_one_request_and_then_with_ever_more():
    watched = await pair()
    async with watched.running():
        await asyncio.sleep(0.1)
        fails(watched, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.01)
        assert (last(watched, "gpu-0").healthy, last(watched, "gpu-0").trial_limit) == (True, 1)
        watched.answers("gpu-0")
        assert last(watched, "gpu-0").trial_limit == RAMP_START
        limits = []
        for _ in range(int(RAMP_S) + 1):
            await asyncio.sleep(1.01)
            limits.append(last(watched, "gpu-0").trial_limit)
    assert limits[:3] == [8, 16, 32]
    assert limits[-1] is None
    assert [circuit for _, circuit in watched.circuits] == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]
    assert last(watched, "gpu-1").trial_limit is None


async def test_the_trial_of_a_static_engine_is_a_batch_of_one():
    watched = await pair(kind="static")
    async with watched.running():
        fails(watched, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        assert (last(watched, "gpu-0").trial_limit, last(watched, "gpu-0").max_concurrency) == (1, 1)
        watched.answers("gpu-0")
        assert (last(watched, "gpu-0").trial_limit, last(watched, "gpu-0").max_concurrency) == (None, None)


async def test_the_only_backend_of_a_model_is_not_held_back_while_it_warms_up():
    watched = Watched(FakeBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", serving("mistral")))
    await watched.look()
    async with watched.running():
        fails(watched, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        assert last(watched, "gpu-0").trial_limit == 1
        watched.answers("gpu-0")
        assert (last(watched, "gpu-0").healthy, last(watched, "gpu-0").trial_limit) == (True, None)


async def test_backends_that_all_warm_up_are_not_held_back():
    watched = await pair()
    async with watched.running():
        for name in ("gpu-0", "gpu-1"):
            fails(watched, name)
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        for name in ("gpu-0", "gpu-1"):
            watched.answers(name)
        await asyncio.sleep(1.2)
        assert [last(watched, name).trial_limit for name in ("gpu-0", "gpu-1")] == [None, None]


async def test_a_backend_that_was_away_warms_up():
    watched = Watched(
        FakeBackend("gpu-0", serving("llama"), AWAY, AWAY, serving("llama")), FakeBackend("gpu-1", serving("llama"))
    )
    await watched.look(3)
    assert not last(watched, "gpu-0").healthy
    await watched.look()
    assert (last(watched, "gpu-0").healthy, last(watched, "gpu-0").trial_limit) == (True, RAMP_START)


async def test_the_gateway_s_first_backends_begin_without_a_limit():
    watched = await pair()
    assert [state.trial_limit for state in watched.seen] == [None, None]


async def test_a_request_waits_for_a_trial_that_is_near_and_not_for_one_that_is_far():
    watched = Watched(FakeBackend("gpu-0", serving("llama")))
    await watched.look()
    fails(watched, "gpu-0")
    assert not watched.pool.ready
    assert watched.pool.require("llama").id == "llama"
    for _ in range(5):  # trials that fail, each after twice the time
        await asyncio.sleep(watched.pool.entries["gpu-0"].breaker.retry_s - asyncio.get_running_loop().time())
        await watched.look()
        fails(watched, "gpu-0", times=1)
    with pytest.raises(NoBackend):
        watched.pool.require("llama")


# Backends that come and go


async def test_a_backend_that_is_added_is_looked_at_and_warms_up():
    watched = Watched(FakeBackend("gpu-0", serving("llama")))
    async with watched.running():
        await asyncio.sleep(1)
        watched.pool.add(FakeBackend("gpu-1", serving("llama")))
        await asyncio.sleep(0.5)
        assert (last(watched, "gpu-1").healthy, last(watched, "gpu-1").trial_limit) == (True, RAMP_START)
        assert watched.pool.ready


async def test_no_two_backends_have_one_name():
    watched = await pair()
    with pytest.raises(ValueError, match="gpu-0"):
        watched.pool.add(FakeBackend("gpu-0", serving()))


async def test_a_draining_backend_gets_nothing_new_until_it_does_not_drain_any_more():
    watched = await pair()
    watched.pool.drain("gpu-0", True)
    assert not last(watched, "gpu-0").healthy
    await watched.look()
    assert not last(watched, "gpu-0").healthy
    watched.pool.drain("gpu-0", False)
    assert last(watched, "gpu-0").healthy


async def test_a_model_whose_only_backend_drains_has_no_backend():
    watched = Watched(FakeBackend("gpu-0", serving("llama")))
    await watched.look()
    watched.pool.drain("gpu-0", True)
    assert not watched.pool.ready
    with pytest.raises(NoBackend):
        watched.pool.require("llama")


async def test_a_backend_is_taken_out_when_it_has_ended_what_it_runs():
    watched = await pair()
    watched.in_flight["gpu-0"] = 1
    async with watched.running():
        watched.pool.remove("gpu-0")
        await asyncio.sleep(10)
        assert not last(watched, "gpu-0").healthy
        assert watched.pool.backend("gpu-0").spec.name == "gpu-0"
        watched.in_flight["gpu-0"] = 0
        await asyncio.sleep(2)
        assert list(watched.pool.entries) == ["gpu-1"]
        seen = len(watched.seen)
        await asyncio.sleep(5)
    assert watched.gone == ["gpu-0"]
    assert {state.name for state in watched.seen[seen:]} == {"gpu-1"}
    with pytest.raises(BackendUnavailable):
        watched.pool.backend("gpu-0")


async def test_a_backend_is_taken_out_at_once_by_force_or_when_it_runs_nothing():
    watched = await pair()
    watched.in_flight["gpu-0"] = 1
    watched.pool.remove("gpu-0", force=True)
    watched.pool.remove("gpu-1")
    assert (watched.gone, watched.pool.entries) == (["gpu-0", "gpu-1"], {})


async def test_a_look_that_ends_after_its_backend_was_taken_out_tells_nobody():
    watched = Watched(SlowBackend("gpu-0", serving("llama")))
    async with watched.running():
        await asyncio.sleep(0.1)
        watched.pool.remove("gpu-0", force=True)
        await asyncio.sleep(5)
    assert watched.seen == []


async def test_the_same_engine_in_other_words_goes_on_as_it_was():
    watched = await pair()
    changed = FakeBackend("gpu-0", serving("llama"), max_concurrency=3)
    await watched.pool.replace(changed)
    assert (last(watched, "gpu-0").healthy, last(watched, "gpu-0").max_concurrency) == (True, 3)
    assert last(watched, "gpu-0").trial_limit is None
    assert (watched.gone, changed.scrapes) == ([], 0)


async def test_another_engine_is_looked_at_before_it_takes_over():
    watched = await pair()
    other = SlowBackend("gpu-0", serving("mistral"), kind="vllm")
    replacing = asyncio.create_task(watched.pool.replace(other))
    await asyncio.sleep(0.5)
    assert watched.pool.require("llama").id == "llama"
    assert watched.pool.entries["gpu-0"].takes_work
    await replacing
    assert (watched.gone, last(watched, "gpu-0").models) == (["gpu-0"], {"mistral"})
    assert last(watched, "gpu-0").healthy


async def test_a_slow_look_at_one_backend_delays_no_other():
    slow, quick = SlowBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", serving("llama"))
    async with Watched(slow, quick, interval_s=0.1).running():
        await asyncio.sleep(30)
    assert 250 <= quick.scrapes <= 350
    assert 25 <= slow.scrapes <= 33
