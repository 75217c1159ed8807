import pytest

from backends.simulator.config import EngineConfig
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload, arrivals_at, lengths_named, simulate
from gateway.simulation.report import report
from gateway.simulation.times import Pattern
from tests.unit.gateway.simulation.past_rows import rows

FORECAST = LengthQuantiles.of((50.0, 80.0, 100.0, 120.0, 150.0, 170.0))


def make_workload(**options):
    past = rows(400, output_tokens=lambda i: 20 + 11 * i % 200)
    return Workload("w", past, EngineConfig(kv_tokens=4096, max_num_seqs=20), [FORECAST] * 400, **options)


@pytest.fixture(scope="module")
def workload():
    """One workload for all tests, since each measures its saturation."""
    return make_workload()


def run(workload, policy, conditions):
    return report(policy, simulate(workload, SimulatedPolicy(policy), conditions))


def test_load_is_a_share_of_what_all_engines_sustain(workload):
    one = workload.saturation(300)
    arriving = arrivals_at(workload, Conditions(load=0.5, engines=4, count=300, pattern=Pattern.POISSON))
    assert 300 / arriving[-1].arrival_s == pytest.approx(0.5 * 4 * one.req_per_s, rel=0.15)


def test_every_policy_gets_the_same_arrivals(workload):
    conditions = Conditions(load=1.2, count=100, seed=5)
    assert arrivals_at(workload, conditions) == arrivals_at(workload, conditions)
    assert arrivals_at(workload, conditions) != arrivals_at(workload, Conditions(load=1.2, count=100, seed=6))


def test_each_row_is_sent_once_if_no_count_is_given(workload):
    assert len(arrivals_at(workload, Conditions(load=None, rate=5.0))) == 400


@pytest.mark.parametrize("lengths", ["trained", "learned", "true", "random", "10x", "0.1x"])
def test_every_request_is_answered_with_every_kind_of_lengths(workload, lengths):
    result = run(workload, "hrrn", Conditions(load=1.2, count=80, lengths=lengths))
    assert (result.n, result.policy) == (80, "hrrn")


@pytest.mark.parametrize("faults", [{"blind": True}, {"frozen_from_s": 2.0}, {"scrape_interval_s": 30.0}])
def test_no_request_waits_for_ever_with_faulty_scrapes(workload, faults):
    assert run(workload, "hrrn", Conditions(load=1.2, count=80, **faults)).n == 80


@pytest.mark.parametrize("name", ["guessed", "x", "0x", "tenx"])
def test_unknown_lengths_are_an_error(workload, name):
    with pytest.raises(ValueError, match="lengths"):
        lengths_named(name, workload)


def test_trained_lengths_need_forecasts():
    workload = make_workload()
    workload.forecasts = None
    with pytest.raises(ValueError, match="trained"):
        lengths_named("trained", workload)
