import asyncio
from contextlib import asynccontextmanager

import pytest

from backends.base import BackendUnreachableError, ModelCard, Snapshot
from gateway.dispatch.pool import FAILURES_TO_UNHEALTHY, MAX_INTERVAL_FACTOR, Pool
from gateway.errors import BackendRefused, BackendTimeout, BackendUnavailable, ModelNotFound, NoBackend, ProtocolError
from tests.unit.gateway.fake_engines import FakeBackend

AWAY = BackendUnreachableError("away")


def serving(*models, **told):
    return Snapshot(tuple(ModelCard(model, 4096) for model in models or ("llama",)), **told)


class Watched:
    """A pool and what it told."""

    def __init__(self, *backends, interval_s=1.0):
        self.seen = []
        self.failed = []
        self.pool = Pool(
            backends,
            post=lambda message: self.seen.append(message.state),
            monotonic=lambda: asyncio.get_running_loop().time(),
            interval_s=interval_s,
            on_scrape_failure=lambda name, _: self.failed.append(name),
        )

    async def look(self, times=1):
        for _ in range(times):
            for member in self.pool.members.values():
                await self.pool.look(member)
        return self.seen[-1].healthy if self.seen else None

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.pool.run())
        yield
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
        assert (state.running, state.waiting, state.preemptions, state.seen_s) == (3, 2, 1, 5)


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
    assert 40 <= backend.looked <= 60


async def test_a_backend_that_stays_away_is_asked_less_often():
    backend = FakeBackend("gpu", AWAY)
    async with Watched(backend, interval_s=1.0).running():
        await asyncio.sleep(1000)
    assert 1000 / MAX_INTERVAL_FACTOR * 0.9 <= backend.looked <= 1000 / MAX_INTERVAL_FACTOR * 1.3


async def test_one_backend_s_absence_does_not_keep_from_looking_at_another():
    here, away = FakeBackend("gpu-0", serving()), FakeBackend("gpu-1", AWAY)
    async with Watched(here, away).running():
        await asyncio.sleep(100)
    assert here.looked > 5 * away.looked


@pytest.mark.parametrize("error", [BackendUnavailable("gone"), BackendTimeout("silent")])
async def test_a_backend_on_which_a_request_failed_is_looked_at_at_once(error):
    backend = FakeBackend("gpu", serving(), AWAY)
    watched = Watched(backend, interval_s=1000.0)
    async with watched.running():
        await asyncio.sleep(1)
        assert backend.looked == 1
        watched.pool.note_failure("gpu", error)
        await asyncio.sleep(1)
        assert backend.looked == 2


@pytest.mark.parametrize("error", [BackendRefused("no", status=400, type="x"), ProtocolError("what?")])
async def test_a_refusal_is_no_reason_to_look(error):
    backend = FakeBackend("gpu", serving())
    watched = Watched(backend, interval_s=1000.0)
    async with watched.running():
        await asyncio.sleep(1)
        watched.pool.note_failure("gpu", error)
        await asyncio.sleep(1)
        assert backend.looked == 1


async def test_a_failure_on_a_backend_that_is_no_more_is_nothing():
    watched = Watched()
    watched.pool.note_failure("gone", BackendUnavailable("gone"))
    assert watched.failed == []


async def test_a_pool_without_backends_stays_up():
    async with Watched().running():
        await asyncio.sleep(10)
