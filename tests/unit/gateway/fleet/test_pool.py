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
from gateway.fleet.breaker import FAILURES_TO_OPEN, FIRST_BACKOFF_S, RAMP_S, RAMP_START, Circuit, fingerprint_of
from gateway.fleet.entry import FAILURES_TO_UNHEALTHY
from gateway.fleet.pool import MAX_INTERVAL_FACTOR, BackendPool
from gateway.scheduling.messages import BackendRemoved
from tests.unit.gateway.fake_engines import FakeBackend

UNREACHABLE = BackendUnreachableError("unreachable")


def serving(*models, **metrics):
    return Snapshot(tuple(ModelCard(model, 4096) for model in models or ("llama",)), **metrics)


class ObservedPool:
    """A pool, and everything that it reported."""

    def __init__(self, *backends, interval_s=1.0):
        self.states = []
        self.removed = []
        self.failed = []
        self.circuits = []
        self.in_flight = defaultdict(int)
        self.pool = BackendPool(
            backends,
            post=self.post,
            monotonic=lambda: asyncio.get_running_loop().time(),
            interval_s=interval_s,
            on_scrape_failure=lambda name, _: self.failed.append(name),
            in_flight=self.in_flight.__getitem__,
            on_circuit=lambda name, circuit: self.circuits.append((name, circuit)),
        )

    def post(self, message):
        if isinstance(message, BackendRemoved):
            self.removed.append(message.name)
        else:
            self.states.append(message.state)

    def answers(self, name):
        self.pool.record_answer(name, asyncio.get_running_loop().time(), complete=True)

    def fails(self, name, error):
        self.pool.record_failure(name, error, asyncio.get_running_loop().time())

    async def scrape(self, times=1):
        for _ in range(times):
            for entry in self.pool.entries.values():
                await self.pool.scrape(entry)
        return self.states[-1].healthy if self.states else None

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.pool.run())
        yield
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class SlowBackend(FakeBackend):
    """Takes 0.9 s for a scrape, as vLLM does under load."""

    async def scrape(self):
        await asyncio.sleep(0.9)
        return await super().scrape()


async def test_scrape_is_reported_to_the_scheduler():
    backend = FakeBackend(
        "gpu", serving("llama", kv_capacity_tokens=9000, kv_used_tokens=70, kv_block_tokens=16), max_concurrency=8
    )
    observed = ObservedPool(backend)
    await observed.scrape()
    (state,) = observed.states
    assert (state.name, state.healthy, state.models) == ("gpu", True, frozenset({"llama"}))
    assert (state.kv_capacity_tokens, state.kv_used_tokens, state.kv_block_tokens) == (9000, 70, 16)
    assert (state.max_concurrency, state.max_model_len) == (8, 4096)


async def test_report_contains_running_and_waiting_requests_and_the_time():
    observed = ObservedPool(FakeBackend("gpu", serving(running=3, waiting=2, preemptions=1), UNREACHABLE))
    await asyncio.sleep(5)
    await observed.scrape()
    await asyncio.sleep(5)
    await observed.scrape()
    for state in observed.states:
        assert (state.running, state.waiting, state.preemptions, state.scraped_s) == (3, 2, 1, 5)


@pytest.mark.parametrize(
    ("kind", "static", "reserving"),
    [("vllm", False, False), ("openai", False, False), ("tgi", False, True), ("static", True, False)],
)
async def test_report_contains_how_the_engine_batches(kind, static, reserving):
    observed = ObservedPool(FakeBackend("gpu", serving(), kind=kind))
    await observed.scrape()
    assert (observed.states[0].static, observed.states[0].reserving) == (static, reserving)


async def test_backend_is_unhealthy_before_its_first_scrape():
    observed = ObservedPool(FakeBackend("gpu", UNREACHABLE, serving()))
    assert not observed.pool.ready
    assert await observed.scrape() is False
    assert observed.failed == ["gpu"]
    assert await observed.scrape() is True
    assert observed.pool.ready


async def test_second_failed_scrape_makes_a_backend_unhealthy():
    observed = ObservedPool(FakeBackend("gpu", serving(), UNREACHABLE))
    assert await observed.scrape(FAILURES_TO_UNHEALTHY) is True
    assert await observed.scrape() is False
    assert not observed.pool.ready


async def test_successful_scrape_makes_a_backend_healthy():
    observed = ObservedPool(FakeBackend("gpu", serving(), UNREACHABLE, UNREACHABLE, UNREACHABLE, serving()))
    assert await observed.scrape(4) is False
    assert await observed.scrape() is True
    assert await observed.scrape() is True


async def test_unreachable_backend_keeps_its_last_snapshot():
    observed = ObservedPool(FakeBackend("gpu", serving("llama", kv_capacity_tokens=9000), UNREACHABLE))
    await observed.scrape(5)
    assert (observed.states[-1].models, observed.states[-1].kv_capacity_tokens) == (frozenset({"llama"}), 9000)


async def test_shortest_context_of_a_backend_counts():
    snapshot = Snapshot((ModelCard("a", 100), ModelCard("b", 50), ModelCard("c")))
    observed = ObservedPool(FakeBackend("gpu", snapshot))
    await observed.scrape()
    assert observed.states[-1].max_model_len == 50


async def test_models_of_all_backends_are_one_list():
    observed = ObservedPool(FakeBackend("gpu-0", serving("a", "b")), FakeBackend("gpu-1", serving("b", "c")))
    assert observed.pool.models() == {}
    await observed.scrape()
    assert list(observed.pool.models()) == ["a", "b", "c"]


async def test_require_returns_the_card_of_a_served_model():
    observed = ObservedPool(FakeBackend("gpu", serving("llama")))
    await observed.scrape()
    assert observed.pool.require("llama") == ModelCard("llama", 4096)


async def test_model_that_no_backend_has_is_not_found():
    observed = ObservedPool(FakeBackend("gpu", serving("llama")))
    await observed.scrape()
    with pytest.raises(ModelNotFound, match="'mistral' does not exist") as refusal:
        observed.pool.require("mistral")
    assert refusal.value.param == "model"


async def test_model_of_an_unreachable_backend_is_still_known():
    observed = ObservedPool(FakeBackend("gpu", serving("llama"), UNREACHABLE))
    await observed.scrape()
    assert observed.pool.serves_now("llama")
    await observed.scrape(2)
    assert observed.pool.require("llama").id == "llama"
    assert not observed.pool.serves_now("llama")


async def test_largest_context_of_a_model_is_listed():
    cards = {"gpu-0": 4096, "gpu-1": 32768, "gpu-2": None}
    observed = ObservedPool(*(FakeBackend(name, Snapshot((ModelCard("llama", n),))) for name, n in cards.items()))
    await observed.scrape()
    assert observed.pool.models() == {"llama": ModelCard("llama", 32768)}
    assert observed.pool.serves_longer("llama", than="gpu-0")
    observed.pool.remove("gpu-2", force=True)
    assert not observed.pool.serves_longer("llama", than="gpu-1")


async def test_model_that_an_unscraped_backend_may_have_is_unavailable():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", UNREACHABLE))
    await observed.scrape(3)
    assert observed.pool.require("llama").id == "llama"
    with pytest.raises(NoBackend):
        observed.pool.require("mistral")


async def test_model_is_unavailable_without_backends():
    with pytest.raises(NoBackend):
        ObservedPool().pool.require("llama")


async def test_long_model_name_is_cut_in_the_error():
    observed = ObservedPool(FakeBackend("gpu", serving()))
    await observed.scrape()
    with pytest.raises(ModelNotFound) as refusal:
        observed.pool.require("x" * 10**6)
    assert len(refusal.value.message) < 300


async def test_backend_is_scraped_periodically():
    backend = FakeBackend("gpu", serving())
    observed = ObservedPool(backend, interval_s=2.0)
    async with observed.running():
        await asyncio.sleep(100)
    assert 40 <= backend.scrapes <= 60


async def test_unreachable_backend_is_scraped_less_often():
    backend = FakeBackend("gpu", UNREACHABLE)
    async with ObservedPool(backend, interval_s=1.0).running():
        await asyncio.sleep(1000)
    assert 1000 / MAX_INTERVAL_FACTOR * 0.9 <= backend.scrapes <= 1000 / MAX_INTERVAL_FACTOR * 1.3


async def test_unreachable_backend_does_not_delay_scrapes_of_others():
    here, away = FakeBackend("gpu-0", serving()), FakeBackend("gpu-1", UNREACHABLE)
    async with ObservedPool(here, away).running():
        await asyncio.sleep(100)
    assert here.scrapes > 5 * away.scrapes


@pytest.mark.parametrize("error", [BackendUnavailable("gone"), BackendTimeout("silent")])
async def test_failed_connection_triggers_a_scrape(error):
    backend = FakeBackend("gpu", serving(), UNREACHABLE)
    observed = ObservedPool(backend, interval_s=1000.0)
    async with observed.running():
        await asyncio.sleep(1)
        assert backend.scrapes == 1
        observed.fails("gpu", error)
        await asyncio.sleep(1)
        assert backend.scrapes == 2


@pytest.mark.parametrize("error", [BackendRefused("no", status=400, type="x"), ProtocolError("what?")])
async def test_refused_request_triggers_no_scrape(error):
    backend = FakeBackend("gpu", serving())
    observed = ObservedPool(backend, interval_s=1000.0)
    async with observed.running():
        await asyncio.sleep(1)
        observed.fails("gpu", error)
        await asyncio.sleep(1)
        assert backend.scrapes == 1


async def test_failure_of_a_removed_backend_is_ignored():
    observed = ObservedPool()
    observed.fails("gone", BackendUnavailable("gone"))
    assert observed.failed == []


async def test_pool_without_backends_runs():
    async with ObservedPool().running():
        await asyncio.sleep(10)


# Outcomes of requests


FAILURES = {
    "gone": lambda: BackendUnavailable("gone"),
    "silent": lambda: BackendTimeout("silent"),
    "garbled": lambda: ProtocolError("what?"),
    "broken": lambda: BackendRefused("boom", status=500, type="x"),
}
NO_FAILURES = {
    "full": lambda: BackendFull("full"),
    "refused": lambda: BackendRefused("no", status=400, type="x"),
    "unknown route": lambda: BackendRefused("what?", status=501, type="x"),
    "batch too large": lambda: BatchSplit("halves"),
}


def fails(observed, name, error=FAILURES["broken"], times=FAILURES_TO_OPEN):
    """Let several requests fail on a backend."""
    errors = [error() for _ in range(times)]
    for each in errors:
        observed.fails(name, each)


async def pair(*, kind="openai"):
    """Return two backends of one model, after one scrape of each."""
    backends = {name: FakeBackend(name, serving("llama"), kind=kind) for name in ("gpu-0", "gpu-1")}
    observed = ObservedPool(*backends.values())
    await observed.scrape()
    return observed


def last(observed, name):
    return [state for state in observed.states if state.name == name][-1]


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
async def test_backend_with_good_scrapes_and_failing_requests_gets_no_more_requests(error):
    observed = await pair()
    fails(observed, "gpu-0", error, FAILURES_TO_OPEN - 1)
    assert last(observed, "gpu-0").healthy
    fails(observed, "gpu-0", error, 1)
    assert not last(observed, "gpu-0").healthy
    assert observed.pool.entries["gpu-0"].healthy
    assert observed.circuits == [("gpu-0", Circuit.OPEN)]
    await observed.scrape()
    assert (last(observed, "gpu-0").healthy, last(observed, "gpu-1").healthy) == (False, True)


@pytest.mark.parametrize("error", NO_FAILURES.values(), ids=NO_FAILURES)
async def test_full_backend_and_bad_request_are_no_failures(error):
    observed = await pair()
    fails(observed, "gpu-0", error, 10 * FAILURES_TO_OPEN)
    assert last(observed, "gpu-0").healthy
    assert observed.circuits == []


async def test_failing_backend_is_tried_with_one_request_and_then_with_more():
    observed = await pair()
    async with observed.running():
        await asyncio.sleep(0.1)
        fails(observed, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.01)
        assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").trial_limit) == (True, 1)
        observed.answers("gpu-0")
        assert last(observed, "gpu-0").trial_limit == RAMP_START
        limits = []
        for _ in range(int(RAMP_S) + 1):
            await asyncio.sleep(1.01)
            limits.append(last(observed, "gpu-0").trial_limit)
    assert limits[:3] == [8, 16, 32]
    assert limits[-1] is None
    assert [circuit for _, circuit in observed.circuits] == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]
    assert last(observed, "gpu-1").trial_limit is None


async def test_trial_of_a_static_engine_is_a_batch_of_one():
    observed = await pair(kind="static")
    async with observed.running():
        fails(observed, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        assert (last(observed, "gpu-0").trial_limit, last(observed, "gpu-0").max_concurrency) == (1, 1)
        observed.answers("gpu-0")
        assert (last(observed, "gpu-0").trial_limit, last(observed, "gpu-0").max_concurrency) == (None, None)


async def test_only_backend_of_a_model_has_no_limit_during_its_warm_up():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", serving("mistral")))
    await observed.scrape()
    async with observed.running():
        fails(observed, "gpu-0")
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        assert last(observed, "gpu-0").trial_limit == 1
        observed.answers("gpu-0")
        assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").trial_limit) == (True, None)


async def test_no_limit_if_all_backends_warm_up():
    observed = await pair()
    async with observed.running():
        for name in ("gpu-0", "gpu-1"):
            fails(observed, name)
        await asyncio.sleep(FIRST_BACKOFF_S + 0.2)
        for name in ("gpu-0", "gpu-1"):
            observed.answers(name)
        await asyncio.sleep(1.2)
        assert [last(observed, name).trial_limit for name in ("gpu-0", "gpu-1")] == [None, None]


async def test_backend_that_was_unreachable_warms_up():
    observed = ObservedPool(
        FakeBackend("gpu-0", serving("llama"), UNREACHABLE, UNREACHABLE, serving("llama")),
        FakeBackend("gpu-1", serving("llama")),
    )
    await observed.scrape(3)
    assert not last(observed, "gpu-0").healthy
    await observed.scrape()
    assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").trial_limit) == (True, RAMP_START)


async def test_first_backends_start_without_a_limit():
    observed = await pair()
    assert [state.trial_limit for state in observed.states] == [None, None]


async def test_last_backend_of_a_model_is_limited_and_not_shut_out():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", serving("mistral")))
    await observed.scrape()
    fails(observed, "gpu-0", times=10 * FAILURES_TO_OPEN)
    assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").trial_limit) == (True, 1)
    assert observed.pool.require("llama").id == "llama"


async def test_backend_whose_circuit_is_open_is_tried_when_the_other_one_is_gone():
    observed = await pair()
    fails(observed, "gpu-0")
    assert not last(observed, "gpu-0").healthy
    observed.pool.drain("gpu-1", True)
    await observed.scrape()
    assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").trial_limit) == (True, 1)


async def test_last_backend_whose_scrapes_fail_is_shut_out():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama"), UNREACHABLE))
    await observed.scrape(2)
    fails(observed, "gpu-0")
    assert not last(observed, "gpu-0").healthy


async def test_answered_failures_count_by_fingerprint_and_failed_connections_each():
    observed = await pair()
    bad = fingerprint_of("bad", "prompt")
    for error in (BackendRefused("no", status=500, type="x"), ProtocolError("what?")):
        for _ in range(2 * FAILURES_TO_OPEN):
            observed.pool.record_failure("gpu-0", error, 0.0, bad)
    assert observed.circuits == []
    for _ in range(FAILURES_TO_OPEN):
        observed.pool.record_failure("gpu-1", BackendUnavailable("reset"), 0.0, bad)
    assert observed.circuits == [("gpu-1", Circuit.OPEN)]


async def test_scheduler_gets_the_requests_that_a_trial_is_reserved_from():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")))
    await observed.scrape()
    fingerprints = {fingerprint_of("a", number) for number in range(FAILURES_TO_OPEN)}
    for fingerprint in fingerprints:
        observed.pool.record_failure("gpu-0", BackendRefused("no", status=500, type="x"), 0.0, fingerprint)
    assert last(observed, "gpu-0").reserved_from == fingerprints


# Adding, replacing and removing backends


async def test_added_backend_is_scraped_and_warms_up():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")))
    async with observed.running():
        await asyncio.sleep(1)
        observed.pool.add(FakeBackend("gpu-1", serving("llama")))
        await asyncio.sleep(0.5)
        assert (last(observed, "gpu-1").healthy, last(observed, "gpu-1").trial_limit) == (True, RAMP_START)
        assert observed.pool.ready


async def test_backend_names_are_unique():
    observed = await pair()
    with pytest.raises(ValueError, match="gpu-0"):
        observed.pool.add(FakeBackend("gpu-0", serving()))


async def test_draining_backend_gets_no_requests_until_draining_ends():
    observed = await pair()
    observed.pool.drain("gpu-0", True)
    assert not last(observed, "gpu-0").healthy
    await observed.scrape()
    assert not last(observed, "gpu-0").healthy
    observed.pool.drain("gpu-0", False)
    assert last(observed, "gpu-0").healthy


async def test_model_whose_only_backend_drains_is_unavailable():
    observed = ObservedPool(FakeBackend("gpu-0", serving("llama")))
    await observed.scrape()
    observed.pool.drain("gpu-0", True)
    assert not observed.pool.ready
    with pytest.raises(NoBackend):
        observed.pool.require("llama")


async def test_backend_is_removed_after_its_last_request():
    observed = await pair()
    observed.in_flight["gpu-0"] = 1
    async with observed.running():
        observed.pool.remove("gpu-0")
        await asyncio.sleep(10)
        assert not last(observed, "gpu-0").healthy
        assert observed.pool.backend("gpu-0").spec.name == "gpu-0"
        observed.in_flight["gpu-0"] = 0
        await asyncio.sleep(2)
        assert list(observed.pool.entries) == ["gpu-1"]
        seen = len(observed.states)
        await asyncio.sleep(5)
    assert observed.removed == ["gpu-0"]
    assert {state.name for state in observed.states[seen:]} == {"gpu-1"}
    with pytest.raises(BackendUnavailable):
        observed.pool.backend("gpu-0")


async def test_backend_is_removed_at_once_by_force_or_when_idle():
    observed = await pair()
    observed.in_flight["gpu-0"] = 1
    observed.pool.remove("gpu-0", force=True)
    observed.pool.remove("gpu-1")
    assert (observed.removed, observed.pool.entries) == (["gpu-0", "gpu-1"], {})


async def test_scrape_of_a_removed_backend_is_not_reported():
    observed = ObservedPool(SlowBackend("gpu-0", serving("llama")))
    async with observed.running():
        await asyncio.sleep(0.1)
        observed.pool.remove("gpu-0", force=True)
        await asyncio.sleep(5)
    assert observed.states == []


async def test_changed_options_keep_the_state_of_the_same_engine():
    observed = await pair()
    changed = FakeBackend("gpu-0", serving("llama"), max_concurrency=3)
    await observed.pool.replace(changed)
    assert (last(observed, "gpu-0").healthy, last(observed, "gpu-0").max_concurrency) == (True, 3)
    assert last(observed, "gpu-0").trial_limit is None
    assert (observed.removed, changed.scrapes) == ([], 0)


async def test_new_engine_is_scraped_before_it_replaces_the_old_one():
    observed = await pair()
    other = SlowBackend("gpu-0", serving("mistral"), kind="vllm")
    replacing = asyncio.create_task(observed.pool.replace(other))
    await asyncio.sleep(0.5)
    assert observed.pool.require("llama").id == "llama"
    assert observed.pool.entries["gpu-0"].takes_work
    await replacing
    assert (observed.removed, last(observed, "gpu-0").models) == (["gpu-0"], {"mistral"})
    assert last(observed, "gpu-0").healthy


async def test_slow_scrape_delays_no_other():
    slow, quick = SlowBackend("gpu-0", serving("llama")), FakeBackend("gpu-1", serving("llama"))
    async with ObservedPool(slow, quick, interval_s=0.1).running():
        await asyncio.sleep(30)
    assert 250 <= quick.scrapes <= 350
    assert 25 <= slow.scrapes <= 33
