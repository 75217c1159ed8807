import pytest

from backends.base import ModelCard, Snapshot
from gateway.fleet.breaker import Circuit
from gateway.fleet.entry import FAILURES_TO_UNHEALTHY, BackendEntry
from tests.unit.gateway.fake_engines import FakeBackend

SNAPSHOT = Snapshot((ModelCard("llama"),))


@pytest.mark.parametrize(
    ("fields", "circuit", "condition", "takes_work"),
    [
        ({}, Circuit.CLOSED, "healthy", True),
        ({"failures": FAILURES_TO_UNHEALTHY - 1}, Circuit.CLOSED, "healthy", True),
        ({"failures": FAILURES_TO_UNHEALTHY}, Circuit.CLOSED, "unreachable", False),
        ({"snapshot": None}, Circuit.CLOSED, "unreachable", False),
        ({"draining": True}, Circuit.CLOSED, "draining", False),
        ({"leaving": True}, Circuit.CLOSED, "draining", False),
        ({}, Circuit.HALF_OPEN, "on_trial", True),
        ({}, Circuit.OPEN, "failing", False),
        ({"draining": True}, Circuit.OPEN, "failing", False),
        ({"failures": FAILURES_TO_UNHEALTHY}, Circuit.OPEN, "unreachable", False),
    ],
)
def test_condition_and_whether_the_backend_takes_work(fields, circuit, condition, takes_work):
    entry = BackendEntry(FakeBackend("gpu"), **{"snapshot": SNAPSHOT, **fields})
    entry.breaker.circuit = circuit
    assert (entry.condition, entry.takes_work) == (condition, takes_work)
