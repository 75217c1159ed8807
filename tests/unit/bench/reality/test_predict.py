import pytest

from backends.simulator.engine import StepTime
from bench.reality.fit import Sample
from bench.reality.predict import saturation_rate, simulate
from bench.reality.rows import Row
from gateway.simulation.lengths import ScaledLengths

STEP_TIME = StepTime(a=0.01, b=1e-4, c=0.0, d=2e-5)


def rows(count, *, output_tokens=50):
    return [Row("app", f"prompt {number}", output_tokens, prompt_tokens=100) for number in range(count)]


@pytest.mark.parametrize("policy", ["direct", "fcfs", "hrrn"])
def test_a_request_alone_takes_its_steps(policy):
    ((timing,), preemptions, _) = simulate(policy, STEP_TIME, [*rows(1)], [0.5], ScaledLengths(1.0))
    steps = Sample(steps=50, running=50, kv_tokens=0, prefill_tokens=100, seconds=1.0)
    assert timing.done_s - timing.arrival_s == pytest.approx(steps.predicted_s(STEP_TIME), rel=0.01)
    assert (timing.tokens, preemptions) == (50, 0)


def test_beyond_saturation_a_queue_grows():
    many = rows(300)
    rate = saturation_rate(STEP_TIME, many)

    def ttft_s(load):
        times_s = [n / rate / load for n in range(len(many))]
        timings, _, _ = simulate("direct", STEP_TIME, many, times_s, ScaledLengths(1.0))
        return timings[-1].first_s - timings[-1].arrival_s

    assert ttft_s(0.8) < 0.1
    assert ttft_s(1.5) > 1.0
