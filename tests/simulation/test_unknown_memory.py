"""An engine that reports no memory: the scheduler learns its capacity. Overload gains, and low load loses nothing."""

import random

import pytest

from backends.simulator.config import EngineConfig
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload, simulate
from gateway.simulation.report import report
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


def figures(workload, policy, load, **changed):
    conditions = Conditions(load=load, count=REQUESTS, lengths="learned", **changed)
    return report(policy, simulate(workload, SimulatedPolicy(policy), conditions))


def test_overload_has_a_far_lower_mean_than_direct_dispatch_and_no_less_throughput(workload):
    direct = figures(workload, "direct", 1.2)
    unknown = figures(workload, "hrrn", 1.2, blind=True)
    assert unknown.mean_s < 0.75 * direct.mean_s
    assert unknown.tok_per_s >= direct.tok_per_s


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_requests_wait_no_longer_if_memory_suffices(workload, load):
    direct = figures(workload, "direct", load)
    unknown = figures(workload, "hrrn", load, blind=True)
    assert unknown.mean_s <= 1.02 * direct.mean_s
