import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.engine import PRESETS
from gateway.simulation.saturation import saturation
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def backlog(count=300, **options):
    return arrivals(rows(count, **options), count=None, rate=1000.0, seed=0)


def test_equal_requests_that_fit_run_at_the_speed_of_the_full_batch():
    config = EngineConfig(max_num_seqs=10)
    step_time = PRESETS["llama-8b-a100"].step_time
    measured = saturation(backlog(input_tokens=1, output_tokens=200), config)
    assert measured.tok_per_s == pytest.approx(10 / step_time(10, 10 * 100, 0), rel=0.02)
    assert measured.req_per_s == pytest.approx(measured.tok_per_s / 200)
    assert measured.service_s == pytest.approx(200 * step_time(10, 10 * 100, 0), rel=0.02)


def test_scarce_memory_lowers_the_rate():
    ample, scarce = (saturation(backlog(), EngineConfig(kv_tokens=tokens)) for tokens in (100_000, 4096))
    assert scarce.tok_per_s < 0.3 * ample.tok_per_s


def test_prompts_that_do_not_fit_are_left_out():
    mixed = [*backlog(), *arrivals(rows(5, input_tokens=9000), count=None, rate=1.0, seed=0)]
    assert saturation(mixed, EngineConfig()) == saturation(backlog(), EngineConfig())


def test_a_workload_that_no_engine_can_hold_is_an_error():
    with pytest.raises(ValueError, match="fits"):
        saturation(backlog(input_tokens=9000), EngineConfig())
