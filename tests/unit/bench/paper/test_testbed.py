import random

import pytest

from backends.simulator.engine import Sequence, StaticEngine
from bench.paper.testbed import Job, Testbed
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

LENGTH = LengthQuantiles.of((1.0,) * 6)


def job(id, prompt, output):
    return Job(Request(str(id), "m", prompt, LENGTH, 0.0, 1e9), output)


def stepped(jobs, testbed):
    """Run the batch on the engine itself: seconds, steps, and whether it failed."""
    engine = StaticEngine(testbed.step_time, testbed.kv_capacity_tokens, max_batch_size=len(jobs))
    for one in jobs:
        engine.submit(Sequence(one.request.id, one.request.prompt_tokens, one.output_tokens, 1024))
    seconds, steps = 0.0, 0
    while engine.running or engine.waiting:
        step = engine.step()
        seconds, steps = seconds + step.duration_s, steps + 1
        if step.failed:
            assert len(step.failed) == len(jobs)
            return seconds, steps, True
    return seconds, steps, False


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("capacity", [38_364, 6_000])
def test_a_batch_runs_as_on_the_engine_step_by_step(seed, capacity):
    chance = random.Random(seed)
    jobs = [job(i, chance.randint(1, 300), chance.randint(1, 400)) for i in range(chance.randint(2, 15))]
    testbed = Testbed(kv_capacity_tokens=capacity)
    seconds, steps, failed = stepped(jobs, testbed)
    run = testbed.run(jobs)
    assert (run.steps, run.failed) == (steps, failed)
    assert run.seconds == pytest.approx(seconds)


def test_a_batch_fails_if_its_padded_size_exceeds_the_memory():
    testbed = Testbed(kv_capacity_tokens=1000)
    assert not testbed.run([job(0, 100, 400), job(1, 100, 10)]).failed
    assert testbed.run([job(0, 100, 401), job(1, 100, 10)]).failed


def test_a_request_that_does_not_fit_alone_is_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        Testbed(kv_capacity_tokens=100).run([job(0, 60, 60)])


def test_four_bit_weights_are_slower_on_this_gpu():
    batch = [job(i, 50, 100) for i in range(7)]
    slower = Testbed().quantised().run(batch).seconds / Testbed().run(batch).seconds
    assert 1.2 < slower < 1.6
