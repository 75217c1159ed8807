from gateway.fleet.breaker import FAILURES_TO_OPEN
from gateway.fleet.entry import BackendEntry
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendObserved, BackendState, QueueLimits, Request, Submit
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.telemetry.gauges import Gauges
from gateway.telemetry.metrics import Metrics
from tests.unit.gateway.fake_engines import FakeBackend

LENGTH = LengthQuantiles.of((10, 20, 40, 80, 150, 200))


def gauges(*messages):
    scheduler = Scheduler(policy_named("hrrn"), QueueLimits(100, 10**6))
    scheduler.step(messages, 0.0)
    return Gauges(Metrics(), scheduler, {"gpu": BackendEntry(FakeBackend("gpu"))}, lambda: {"pending": 3})


def submits(count):
    return [Submit(Request(f"r{i}", "llama", 100, LENGTH, 0.0, 60.0)) for i in range(count)]


def backend_state(**fields):
    return BackendObserved(BackendState("gpu", frozenset({"llama"}), healthy=True, kv_capacity_tokens=9000, **fields))


def read(gauges, name, **labels):
    gauges.refresh()
    return gauges.metrics.registry.get_sample_value(f"magnus_{name}", labels)


def test_waiting_and_running_requests_are_shown():
    scraped = gauges(backend_state(max_concurrency=2), *submits(5))
    assert read(scraped, "queue_waiting") == 3
    assert read(scraped, "queue_waiting_tokens") == scraped.scheduler.waiting_tokens > 300
    assert read(scraped, "requests_running") == 2
    assert read(scraped, "history_records", state="pending") == 3


def test_load_of_a_backend_is_shown():
    scraped = gauges(backend_state(max_concurrency=2), *submits(5))
    assert read(scraped, "backend_in_flight", backend="gpu") == 2
    assert read(scraped, "backend_kv_reserved_tokens", backend="gpu") > 200
    assert read(scraped, "backend_kv_target", backend="gpu") == scraped.scheduler.backend_status("gpu").kv_target
    assert read(scraped, "backend_metrics_believed", backend="gpu") == 1


def test_backend_that_was_never_scraped_has_no_load():
    scraped = gauges()
    assert read(scraped, "backend_in_flight", backend="gpu") is None
    assert read(scraped, "backend_takes_work", backend="gpu") == 0


def test_circuit_of_a_backend_is_shown():
    scraped = gauges()
    assert read(scraped, "backend_circuit", backend="gpu") == 0
    breaker = scraped.backends["gpu"].breaker
    for _ in range(FAILURES_TO_OPEN):
        breaker.record_failure(1.0, 1.0)
    assert read(scraped, "backend_circuit", backend="gpu") == 2
    breaker.poll(breaker.retry_s)
    assert read(scraped, "backend_circuit", backend="gpu") == 1


def test_removed_backend_is_no_longer_shown():
    scraped = gauges(backend_state(max_concurrency=2))
    assert read(scraped, "backend_kv_target", backend="gpu") is not None
    scraped.backends.clear()
    assert read(scraped, "backend_kv_target", backend="gpu") is None
