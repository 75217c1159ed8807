"""With wrong predictions or metrics, the gateway is no worse than direct dispatch to the engine with fewest requests.

Two engines are short of memory, and get half as much work again as they sustain.
"""

import random
from typing import Any

import pytest

from backends.simulator.config import EngineConfig
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload, simulate
from gateway.training.rows import PastRow

ENGINES = 2
KV_TOKENS = 8_000
REQUESTS = 1_000
LOAD = 1.5
LONGEST_ANSWER, LONGEST_PROMPT = 600, 800
LOG_MEDIANS = {"chat": 4.5, "code": 5.2, "labels": 3.8}

NO_LESS_THAN = 0.97
"""Least share of direct dispatch's tokens a second."""

WRONG: dict[str, Any] = {
    "lengths of other requests": {"lengths": "random"},
    "lengths ten times too long": {"lengths": "10x"},
    "lengths ten times too short": {"lengths": "0.1x"},
    "nothing learned yet": {"lengths": "learned"},
    "frozen metrics": {"lengths": "learned", "frozen_from_s": 5.0},
    "no metrics": {"lengths": "learned", "blind": True},
}


@pytest.fixture(scope="module")
def workload():
    chance = random.Random(0)
    rows = []
    for number in range(REQUESTS):
        app = chance.choice(sorted(LOG_MEDIANS))
        prompt = min(LONGEST_PROMPT, 1 + round(chance.lognormvariate(4.6, 0.8)))
        answer = min(LONGEST_ANSWER, 1 + round(chance.lognormvariate(LOG_MEDIANS[app], 0.9)))
        rows.append(PastRow(app=app, prompt=f"p{number}", input_tokens=prompt, output_tokens=answer))
    return Workload("heavy-tailed", rows, EngineConfig(kv_tokens=KV_TOKENS))


def run(workload, policy, **wrong):
    conditions = Conditions(load=LOAD, engines=ENGINES, count=REQUESTS, **wrong)
    return simulate(workload, SimulatedPolicy(policy), conditions)


def tok_per_s(result):
    return sum(trace.generated for trace in result.requests) / result.end_s


@pytest.fixture(scope="module")
def direct(workload):
    return run(workload, "direct", lengths="true")


def preemptions(result):
    return sum(backend.preemptions for backend in result.fleet)


def test_direct_dispatch_runs_short_of_memory(direct):
    assert preemptions(direct) > REQUESTS / 4


CASES = [
    *(("hrrn", wrong) for wrong in WRONG),
    ("magnus", "lengths of other requests"),
    ("magnus", "nothing learned yet"),
]


@pytest.mark.parametrize(("policy", "wrong"), CASES)
def test_every_request_is_answered_and_no_throughput_is_lost(workload, direct, policy, wrong):
    held = run(workload, policy, **WRONG[wrong])
    assert all(trace.answered for trace in held.requests)
    assert tok_per_s(held) >= NO_LESS_THAN * tok_per_s(direct)


def test_right_predictions_avoid_nearly_all_preemptions(workload, direct):
    held = run(workload, "hrrn", lengths="true")
    assert preemptions(held) < preemptions(direct) / 20
    assert tok_per_s(held) > tok_per_s(direct)
