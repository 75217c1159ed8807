import pytest

from backends.simulator.config import EngineConfig
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload, arrivals_at, lengths_named, run_once
from gateway.simulation.times import Pattern
from tests.unit.gateway.simulation.past_rows import rows

FORECAST = LengthQuantiles.of((50.0, 80.0, 100.0, 120.0, 150.0, 170.0))


def workload(**options):
    past = rows(400, output_tokens=lambda i: 20 + 11 * i % 200)
    return Workload("w", past, EngineConfig(kv_tokens=4096, max_num_seqs=20), [FORECAST] * 400, **options)


@pytest.mark.parametrize("text", ["direct", "hrrn", "hrrn:0.55", "magnus@true", "hrrn:0.6@true"])
def test_a_contender_is_written_as_it_is_read(text):
    assert str(SimulatedPolicy.parse(text)) == text


@pytest.mark.parametrize("text", ["lifo", "hrrn:x", "hrrn:-1", "hrrn@false"])
def test_no_contender_of_that_name(text):
    with pytest.raises(ValueError, match=r"policy|alpha"):
        SimulatedPolicy.parse(text)


def test_load_is_a_share_of_what_all_engines_can_do():
    subject = workload()
    one = subject.saturation(300)
    arriving = arrivals_at(subject, Conditions(load=0.5, engines=4, count=300, pattern=Pattern.POISSON))
    assert 300 / arriving[-1].arrival_s == pytest.approx(0.5 * 4 * one.req_per_s, rel=0.15)


def test_every_contender_meets_the_same_arrivals():
    subject, conditions = workload(), Conditions(load=1.2, count=100, seed=5)
    assert arrivals_at(subject, conditions) == arrivals_at(subject, conditions)
    assert arrivals_at(subject, conditions) != arrivals_at(subject, Conditions(load=1.2, count=100, seed=6))


def test_enough_requests_come_for_the_fleet():
    subject = workload()
    one = subject.saturation()
    assert subject.requests(2) >= 1500
    assert subject.requests(8) == 4 * subject.requests(2)
    assert subject.requests(2) / (2 * one.req_per_s) >= 20 * one.service_s


@pytest.mark.parametrize("lengths", ["trained", "learned", "true", "random", "10x", "0.1x"])
def test_all_kinds_of_lengths_bring_everybody_through(lengths):
    result = run_once(workload(), "hrrn", Conditions(load=1.2, count=150, lengths=lengths))
    assert (result.n, result.policy) == (150, "hrrn")


@pytest.mark.parametrize("faults", [{"blind": True}, {"frozen_from_s": 2.0}, {"looks_s": 30.0}])
def test_bad_looks_keep_nobody_waiting_for_ever(faults):
    assert run_once(workload(), "hrrn", Conditions(load=1.2, count=150, **faults)).n == 150


def test_a_clairvoyant_is_not_given_the_forecasts():
    blunt, clairvoyant = (run_once(workload(), name, Conditions(load=1.5, count=300)) for name in ("sjf", "sjf@true"))
    assert clairvoyant.mean_s < blunt.mean_s


@pytest.mark.parametrize("name", ["guessed", "x", "0x", "tenx"])
def test_nobody_predicts_by_that_name(name):
    with pytest.raises(ValueError, match="lengths"):
        lengths_named(name, workload())


def test_nobody_was_trained():
    subject = workload()
    subject.forecasts = None
    with pytest.raises(ValueError, match="trained"):
        lengths_named("trained", subject)
