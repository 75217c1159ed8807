"""An engine that tells nothing of its memory shows it: the queue gains nearly as much, and costs nothing before."""

import random

import pytest

from backends.simulator.config import EngineConfig
from gateway.simulation.experiment import Conditions, Workload, run_once
from gateway.training.rows import PastRow

KV_TOKENS = 8_000
REQUESTS = 1_200
ANSWERS = {"chat": 4.5, "code": 5.5, "labels": 3.0}
"""Mean of the log lengths."""


@pytest.fixture(scope="module")
def workload():
    chance = random.Random(1)
    rows = []
    for number in range(REQUESTS):
        app = chance.choice(sorted(ANSWERS))
        prompt = min(800, 1 + round(chance.lognormvariate(4.6, 0.8)))
        answer = min(600, 1 + round(chance.lognormvariate(ANSWERS[app], 0.5)))
        rows.append(PastRow(app=app, prompt=f"p{number}", input_tokens=prompt, output_tokens=answer))
    return Workload("three applications", rows, EngineConfig(kv_tokens=KV_TOKENS))


def report(workload, policy, load, **conditions):
    return run_once(workload, policy, Conditions(load=load, count=REQUESTS, lengths="learned", **conditions))


def test_under_overload_the_mean_is_far_below_direct_s_and_no_throughput_is_lost(workload):
    direct = report(workload, "direct", 1.2)
    untold = report(workload, "hrrn", 1.2, blind=True)
    assert untold.mean_s < 0.75 * direct.mean_s
    assert untold.tok_per_s >= direct.tok_per_s


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_nobody_waits_longer_where_memory_suffices(workload, load):
    direct = report(workload, "direct", load)
    untold = report(workload, "hrrn", load, blind=True)
    assert untold.mean_s <= 1.02 * direct.mean_s
