import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.engine import PRESETS
from gateway.simulation.core import build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import TrueLengths
from gateway.simulation.report import report
from gateway.simulation.run import Simulation
from gateway.simulation.saturation import saturation
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def backlog(count=300, **options):
    return arrivals(rows(count, **options), count=None, rate=1000.0, seed=0)


def test_equal_requests_that_all_fit_run_at_the_speed_of_the_full_batch():
    config = EngineConfig(max_num_seqs=10)
    step_time = PRESETS["llama-8b-a100"].step_time
    measured = saturation(backlog(input_tokens=1, output_tokens=200), config)
    assert measured.tok_per_s == pytest.approx(10 / step_time(10, 10 * 100, 0), rel=0.02)
    assert measured.req_per_s == pytest.approx(measured.tok_per_s / 200)
    assert measured.service_s == pytest.approx(200 * step_time(10, 10 * 100, 0), rel=0.02)


def test_scarce_memory_bounds_it():
    ample, scarce = (saturation(backlog(), EngineConfig(kv_tokens=tokens)) for tokens in (100_000, 4096))
    assert scarce.tok_per_s < 0.3 * ample.tok_per_s


def test_the_rate_can_be_sustained_and_a_higher_one_cannot():
    config = EngineConfig(kv_tokens=4096)
    past = rows(600, output_tokens=lambda i: 20 + 37 * i % 500)
    one = saturation(arrivals(past, count=None, rate=1000.0, seed=0), config)

    def mean_s(load):
        arriving = arrivals(past, count=None, rate=load * one.req_per_s, seed=0)
        simulation = Simulation(build_core("fcfs"), TrueLengths(), [SimulatedBackend("gpu-0", config)])
        return report("fcfs", simulation.run(arriving)).mean_s

    assert mean_s(0.8) < 2 * one.service_s
    assert mean_s(1.5) > 4 * one.service_s


def test_prompts_that_do_not_fit_are_left_out():
    mixed = [*backlog(), *arrivals(rows(5, input_tokens=9000), count=None, rate=1.0, seed=0)]
    assert saturation(mixed, EngineConfig()) == saturation(backlog(), EngineConfig())


def test_a_workload_that_no_engine_can_hold_has_none():
    with pytest.raises(ValueError, match="fits"):
        saturation(backlog(input_tokens=9000), EngineConfig())
