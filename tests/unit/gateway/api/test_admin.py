from datetime import UTC, datetime

import pytest

from backends.base import ModelCard, Snapshot
from gateway.api.admin import Overview
from gateway.fleet.pool import BackendPool
from gateway.prediction.predictor import Predictor
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Progress, QueueLimits, Request, Submit
from gateway.scheduling.policies import CLASS_RATIO, policy_named
from gateway.scheduling.scheduler import Scheduler
from tests.unit.gateway.fake_engines import FakeBackend

SHORT, LONG = LengthQuantiles.of((10, 11, 12, 13, 14, 15)), LengthQuantiles.of((500, 600, 700, 800, 900, 999))
TOLD = {"kv_capacity_tokens": 9000, "kv_used_tokens": 70, "kv_block_tokens": 16, "running": 1, "waiting": 0}


class Clock:
    def monotonic(self):
        return 10.0

    def now(self):
        return datetime(2026, 1, 1, tzinfo=UTC)


class Gateway:
    """A scheduler, a scraped backend, and the view of an operator."""

    def __init__(self, *, policy="hrrn", max_concurrency=None, **told):
        self.scheduler = Scheduler(policy_named(policy), QueueLimits(100, 10**6))
        backend = FakeBackend("gpu", Snapshot((ModelCard("llama"),), **told), max_concurrency=max_concurrency)
        self.pool = BackendPool(
            [backend], post=self.tell, monotonic=Clock().monotonic, interval_s=1.0, on_scrape_failure=lambda *_: None
        )

    def tell(self, *messages):
        self.scheduler.step(messages, 10.0)

    def submit(self, *lengths):
        first = self.scheduler.waiting + self.scheduler.running
        requests = [Request(f"r{first + i}", "llama", 100, length, 8.0, 99.0) for i, length in enumerate(lengths)]
        self.tell(*map(Submit, requests))

    async def page(self, *, looked=True):
        if looked:
            for entry in self.pool.entries.values():
                await self.pool.scrape(entry)
        return await Overview(no_stats, dict, self.scheduler, self.pool, Predictor(lambda _: None), Clock()).stats(
            None, None, None
        )


async def no_stats(*_):
    return None


@pytest.mark.parametrize("policy", ["hrrn", "magnus", "sjf"])
async def test_waiting_requests_are_counted_by_the_longest_service_of_their_class(policy):
    gateway = Gateway(policy=policy)
    gateway.submit(SHORT, LONG, SHORT)
    queue = (await gateway.page(looked=False))["queue"]
    assert (queue["waiting"], queue["oldest_ms"], queue["policy"]) == (3, 2000.0, policy)
    assert queue["waiting_tokens"] == 3 * 100 + sum(round(length.mean()) for length in (SHORT, LONG, SHORT))
    assert list(queue["by_class"].values()) == [2, 1]
    bounds = [CLASS_RATIO ** (length_class + 1) for length_class in sorted(gateway.scheduler.waiting_by_class())]
    assert [float(bound) for bound in queue["by_class"]] == pytest.approx(bounds, rel=0.01)
    assert bounds[0] < bounds[1]


async def test_first_come_first_served_has_one_class():
    gateway = Gateway(policy="fcfs")
    assert (await gateway.page(looked=False))["queue"]["by_class"] == {}
    gateway.submit(SHORT, LONG)
    assert (await gateway.page(looked=False))["queue"]["by_class"] == {"all": 2}


async def test_a_backend_shows_its_metrics_and_its_ledger():
    gateway = Gateway(max_concurrency=2, **TOLD)
    await gateway.page()
    gateway.submit(SHORT, SHORT, SHORT)
    gateway.tell(Progress("r0", 1))
    page = await gateway.page()
    (backend,) = page["backends"]
    assert page["queue"]["waiting"] == 1
    assert page["queue"]["next"] == [
        {"model": "llama", "waited_ms": 2000.0, "kept_from": {"gpu": "runs as many requests as it can"}}
    ]
    assert (backend["healthy"], backend["models"]) == (True, ["llama"])
    assert (backend["kv_capacity_tokens"], backend["kv_used_tokens"], backend["running"]) == (9000, 70, 1)
    assert backend["in_flight"] == 2
    assert 200 < backend["kv_reserved_tokens"] < 400
    assert 0.5 < backend["kv_target"] < 2.0
    assert backend["metrics_believed"] is True
    assert backend["seats"] is None
    assert 1 < backend["tpot_ms"] < 1000


async def test_the_learned_max_num_seqs_is_shown():
    gateway = Gateway(**TOLD | {"running": 4, "waiting": 3})
    await gateway.page()
    (backend,) = (await gateway.page())["backends"]
    assert backend["seats"] == 4


async def test_an_engine_that_reports_no_memory_has_neither_fresh_nor_stale_metrics():
    (backend,) = (await Gateway().page())["backends"]
    assert backend["metrics_believed"] is None
    assert (backend["kv_used_tokens"], backend["kv_reserved_tokens"], backend["in_flight"]) == (None, 0, 0)


async def test_metrics_that_do_not_change_are_stale():
    gateway = Gateway(**TOLD)
    for _ in range(10):
        await gateway.page()
        gateway.submit(LONG)
    (backend,) = (await gateway.page())["backends"]
    assert backend["metrics_believed"] is False


async def test_a_backend_that_was_never_scraped_has_no_load():
    (backend,) = (await Gateway().page(looked=False))["backends"]
    assert backend["healthy"] is False
    assert (backend["kv_reserved_tokens"], backend["in_flight"], backend["kv_target"]) == (0, 0, None)
    known = Gateway()
    shown = (await known.page())["backends"][0]
    assert backend.keys() == shown.keys()
