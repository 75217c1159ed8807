"""Every failure of a backend leaves its reason: one log line per change, and `last_error`."""

import asyncio
import logging

import pytest

from backends.base import BackendSpec, BackendUnreachableError, ModelCard, Snapshot
from gateway.config import read_backend
from gateway.errors import BackendRefused, CredentialsRefused
from gateway.fleet.breaker import Circuit
from gateway.fleet.discovery import Discovery
from gateway.fleet.manager import spec_of
from tests.unit.gateway.fake_engines import FakeBackend, pool_of

SERVING = Snapshot((ModelCard("llama"),))
LOCKED = CredentialsRefused("The engine refused the gateway's credentials with status 401")


def unreachable(reason):
    return BackendUnreachableError(f"backend 'gpu': GET /v1/models: {reason}")


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


async def scraped(*snapshots, times):
    pool = pool_of(FakeBackend("gpu", *snapshots))
    entry = pool.entries["gpu"]
    for _ in range(times):
        await pool.scrape(entry)
    return pool, entry


@pytest.fixture(autouse=True)
def all_levels(caplog):
    caplog.set_level(logging.INFO)


async def test_failing_scrapes_are_logged_once_with_reason_and_url(caplog):
    _, entry = await scraped(unreachable("connection refused"), times=5)
    (line,) = lines(caplog)
    assert "Backend gpu gets no requests (http://gpu/): GET /v1/models: connection refused" in line
    assert (entry.last_error.text, entry.last_error.count) == ("GET /v1/models: connection refused", 5)


async def test_another_reason_and_the_recovery_are_logged(caplog):
    _, entry = await scraped(
        unreachable("refused"), unreachable("status 401"), unreachable("status 401"), SERVING, times=4
    )
    assert [("refused" in line, "401" in line, "again" in line) for line in lines(caplog)] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]
    assert (entry.last_error.text, entry.last_error.current) == ("GET /v1/models: status 401", False)


async def test_single_failed_scrape_of_a_healthy_backend_is_not_logged(caplog):
    _, entry = await scraped(SERVING, unreachable("slow"), SERVING, times=3)
    assert lines(caplog) == []
    assert entry.last_error.text == "GET /v1/models: slow"


async def test_refused_credentials_end_the_work_until_a_request_is_accepted(caplog):
    pool, entry = await scraped(SERVING, times=1)
    other = FakeBackend("other", SERVING)
    pool.add(other)
    await pool.scrape(pool.entries["other"])
    for _ in range(3):
        pool.record_failure("gpu", LOCKED, asyncio.get_running_loop().time())
    assert (entry.takes_work, entry.condition) == (False, "credentials_refused")
    await pool.scrape(entry)
    assert not entry.takes_work
    assert len([line for line in lines(caplog) if "refused the gateway's credentials" in line]) == 1
    await asyncio.sleep(60)
    await pool.scrape(entry)
    pool.record_answer("gpu", asyncio.get_running_loop().time(), complete=True)
    assert (entry.condition, entry.last_error.current) == ("healthy", False)
    assert "accepts" in lines(caplog)[-1]


async def test_new_key_is_tried_at_once():
    pool, entry = await scraped(SERVING, times=1)
    pool.add(FakeBackend("other", SERVING))
    await pool.scrape(pool.entries["other"])
    pool.record_failure("gpu", LOCKED, 0.0)
    assert entry.circuit is Circuit.OPEN
    await pool.replace(FakeBackend("gpu", SERVING, api_key="right"))
    assert entry.circuit is Circuit.HALF_OPEN


async def test_failed_request_is_named_without_the_engine_s_text():
    pool, entry = await scraped(SERVING, times=1)
    pool.record_failure("gpu", BackendRefused("the prompt 'secret' is bad", status=500, type="x"), 0.0)
    assert "secret" not in entry.last_error.text
    assert "500" in entry.last_error.text


async def test_failed_lookup_is_logged_once_and_kept(caplog):
    async def resolve(host):
        if failing:
            raise OSError("Name or service not known")
        return {"10.0.0.1"}

    discovery = Discovery(pool_of(), lambda spec: FakeBackend(spec.name, SERVING), resolve)
    spec, failing = BackendSpec("gpu", "vllm", "http://gpu:8000"), True
    discovery.watch(spec)
    for _ in range(3):
        await discovery.refresh(spec)
    assert len(lines(caplog)) == 1
    assert discovery.errors == {"gpu": "Name or service not known"}
    failing = False
    await discovery.refresh(spec)
    assert (len(lines(caplog)), discovery.errors) == (2, {})


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "//"])
def test_v1_at_the_end_of_a_url_is_removed(end):
    backend = read_backend({"name": "gpu", "kind": "vllm", "url": f"http://gpu:8000/base{end}"})
    assert spec_of(backend).url == "http://gpu:8000/base"
