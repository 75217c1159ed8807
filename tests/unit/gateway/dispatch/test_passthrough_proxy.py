import asyncio
from dataclasses import dataclass, field

import httpx2
import pytest

from backends.base import BackendUnreachableError, ModelCard, Snapshot
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.dispatch.retry_budget import RetryBudget
from gateway.errors import BackendRefused, BackendUnavailable, InvalidRequest, ModelNotFound, NoBackend
from gateway.fleet.breaker import Circuit
from gateway.fleet.pool import BackendPool
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from tests.unit.gateway.dispatch.test_generation_proxy import FakeClient
from tests.unit.gateway.fake_engines import Answer, FakeBackend, FakeTransport, whole
from tests.unit.gateway.request_context import request_context

REQUEST = UpstreamRequest("/v1/embeddings", {}, b"{}")
BROKEN = httpx2.ReadError("reset")


def now():
    return asyncio.get_running_loop().time()


@dataclass
class Fleet:
    """Backends that serve models, and the proxy for requests that are not scheduled."""

    models: dict[str, tuple[str, ...] | None]
    scheduled: dict[str, int] = field(default_factory=dict)
    budget: RetryBudget = field(default_factory=RetryBudget)
    failures: list = field(default_factory=list)

    async def open(self, **scripts):
        self.transport = FakeTransport(**scripts)
        self.pool = BackendPool(
            [FakeBackend(name, self.snapshot(models)) for name, models in self.models.items()],
            post=lambda _: None,
            monotonic=now,
            interval_s=1.0,
            on_scrape_failure=lambda *_: None,
        )
        for entry in self.pool.entries.values():
            await self.pool.scrape(entry)
        self.proxy = PassthroughProxy(
            self.pool,
            UpstreamClient(self.transport, Timeouts(connect_s=5, first_byte_s=60, idle_s=10)),
            scheduled=lambda name: self.scheduled.get(name, 0),
            monotonic=now,
            on_failure=lambda *failure: self.failures.append(failure),
            budget=self.budget,
        )
        return self

    @staticmethod
    def snapshot(models):
        if models is None:
            return BackendUnreachableError("away")
        return Snapshot(tuple(map(ModelCard, models)))

    async def send(self, model="bge", client=None):
        self.client, self.context = client or FakeClient(), request_context(now())
        try:
            await self.proxy.run(self.context, model, REQUEST, self.client)
        finally:
            assert self.transport.all_closed
        return self.client


async def test_answer_is_forwarded_unchanged():
    fleet = await Fleet({"gpu0": ("bge",)}).open(gpu0=[Answer(b"\x00\xff", b"x", kind="audio/wav")])
    client = await fleet.send()
    assert client.starts == [(200, "audio/wav", None)]
    assert (client.body, client.ended, fleet.context.backend, fleet.context.complete) == (
        b"\x00\xffx",
        True,
        "gpu0",
        True,
    )


async def test_an_empty_answer_is_forwarded():
    fleet = await Fleet({"gpu0": ("bge",)}).open(gpu0=[Answer(kind="audio/wav")])
    assert (await fleet.send()).starts == [(200, "audio/wav", 0)]


async def test_backend_with_the_fewest_requests_of_any_kind_is_chosen():
    fleet = Fleet({"gpu0": ("bge",), "gpu1": ("bge",), "gpu2": ("other",)}, scheduled={"gpu0": 2})
    await fleet.open(gpu0=[whole()] * 5, gpu1=[Answer(9.0, b"x")] * 5)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(fleet.proxy.run(request_context(now()), "bge", REQUEST, FakeClient()))
            await asyncio.sleep(1)
    assert fleet.transport.hosts == ["gpu1", "gpu1", "gpu0", "gpu0"]


async def test_a_failure_before_the_first_byte_is_retried_on_another_backend():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[BROKEN], gpu1=[whole()])
    assert (await fleet.send()).ended
    assert fleet.transport.hosts == ["gpu0", "gpu1"]
    assert [name for name, _ in fleet.failures] == ["gpu0"]


async def test_a_failure_after_the_first_byte_is_not_retried():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[Answer(b"x", BROKEN)], gpu1=[whole()])
    with pytest.raises(BackendUnavailable):
        await fleet.send()
    assert fleet.transport.hosts == ["gpu0"]
    assert not fleet.client.ended


async def test_rejection_is_passed_on_unchanged():
    refusal = whole(b'{"error": {"message": "not an embedding model"}}', status=400)
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[refusal])
    with pytest.raises(BackendRefused, match="not an embedding model"):
        await fleet.send()


async def test_after_all_backends_failed_the_client_gets_the_last_error():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[BROKEN], gpu1=[whole(b"no", status=500)])
    with pytest.raises(BackendRefused):
        await fleet.send()


async def test_without_retry_budget_nothing_is_retried():
    fleet = Fleet({"gpu0": ("bge",), "gpu1": ("bge",)})
    while fleet.budget.take(now()):
        continue
    await fleet.open(gpu0=[BROKEN])
    with pytest.raises(BackendUnavailable):
        await fleet.send()


@pytest.mark.parametrize(
    ("models", "model", "error"),
    [
        ({"gpu0": ("bge",)}, "nope", ModelNotFound),
        ({"gpu0": ("bge",), "gpu1": ("llama",)}, None, InvalidRequest),
        ({"gpu0": None}, "bge", NoBackend),
        ({"gpu0": None}, None, NoBackend),
    ],
)
async def test_without_a_backend_nothing_is_sent(models, model, error):
    fleet = await Fleet(models).open()
    with pytest.raises(error):
        await fleet.send(model)
    assert fleet.transport.hosts == []


async def test_a_request_without_a_model_uses_the_only_one():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[whole()])
    assert (await fleet.send(None)).ended


async def test_draining_backend_gets_no_request():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu1=[whole()])
    fleet.pool.drain("gpu0", draining=True)
    await fleet.send()
    assert fleet.transport.hosts == ["gpu1"]


async def test_a_half_open_backend_gets_one_request():
    fleet = await Fleet({"gpu0": ("bge",), "gpu1": ("bge",)}).open(gpu0=[whole()], gpu1=[whole(), whole()])
    trial = fleet.pool.entries["gpu0"]
    trial.breaker.circuit = Circuit.HALF_OPEN
    fleet.scheduled = {"gpu0": 1, "gpu1": 5}
    await fleet.send()
    assert fleet.context.backend == "gpu1"
    fleet.scheduled = {"gpu1": 5}
    await fleet.send()
    assert fleet.context.backend == "gpu0"


async def test_a_draining_backend_stays_until_its_requests_are_done():
    fleet = await Fleet({"gpu0": ("bge",)}).open(gpu0=[whole()])
    client = SlowClient()
    sending = asyncio.create_task(fleet.send(client=client))
    await client.began.wait()
    fleet.pool.remove("gpu0")
    assert "gpu0" in fleet.pool.entries
    client.goes_on.set()
    await sending
    fleet.pool.remove("gpu0")
    assert "gpu0" not in fleet.pool.entries


class SlowClient(FakeClient):
    """A client that takes no bytes until the test releases it."""

    def __init__(self):
        super().__init__()
        self.began, self.goes_on = asyncio.Event(), asyncio.Event()

    async def start(self, *answer, **more):
        self.began.set()
        await self.goes_on.wait()
        await super().start(*answer, **more)
