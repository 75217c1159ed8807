from dataclasses import replace

import pytest

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.explain import Why, explain
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Request
from gateway.scheduling.queue import Waiting

LENGTH = LengthQuantiles.of((10,) * 6, cap=10)
NEXT = Waiting(Request("next", "llama", 100, LENGTH, 5.0, 60.0), 1.0, 10.0)


def backend(*running, kv=1000, **known):
    """A backend on which requests with so many prompt tokens run."""
    models = known.pop("models", {"llama"})
    load = BackendLoad(BackendState("gpu", frozenset(models), **{"healthy": True, "kv_capacity_tokens": kv, **known}))
    for number, prompt in enumerate(running):
        request = Request(f"r{number}", "llama", prompt, LENGTH, 0.0, 60.0)
        load.admit(request, LENGTH, load.ledger.forecast(request, LENGTH), 0.0)
    return load


def full():
    load = backend()
    load.full_until_s = 9.0
    return load


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (backend(models={"mistral"}), Why.OTHER_MODEL),
        (backend(healthy=False), Why.UNHEALTHY),
        (full(), Why.FULL),
        (backend(50, trial_limit=1), Why.TRIAL),
        (backend(50, static=True), Why.BATCH),
        (backend(50, max_concurrency=1), Why.SEATS),
        (backend(900), Why.MEMORY),
    ],
)
def test_what_keeps_a_request_from_a_backend_is_said(load, why):
    explanation = explain(NEXT, [load], now=8.0)
    assert (explanation.model, explanation.request_id, explanation.waited_s) == ("llama", "next", 3.0)
    assert explanation.backends == {"gpu": why}


def test_a_backend_that_failed_it_is_not_asked_again():
    assert explain(replace(NEXT, failed_on=frozenset({"gpu"})), [backend()], 8.0).backends == {"gpu": Why.FAILED}


@pytest.mark.parametrize("load", [backend(), backend(50), backend(2000, kv=None), backend(trial_limit=1)])
def test_a_backend_that_would_take_it_is_left_out(load):
    assert explain(NEXT, [load], 8.0).backends == {}
