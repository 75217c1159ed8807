"""The core against simulated engines, with workloads small enough to be judged by hand."""

import msgspec
import pytest

from backends.simulator.config import EngineConfig
from gateway.scheduling.scheduler import Scheduler
from gateway.simulation.direct import DirectScheduler
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.report import report
from gateway.simulation.run import LearnedLengths, Simulation, TrueLengths
from gateway.simulation.workload import arrivals
from gateway.training.rows import PastRow


def rows(count, *, output_tokens=200, input_tokens=100, t=None):
    return [
        PastRow(app="chat", prompt=f"p{i}", input_tokens=input_tokens, output_tokens=output_tokens, t=t and t(i))
        for i in range(count)
    ]


def run(core, arriving, *, lengths=None, engines=1, kv_tokens=4096):
    fleet = [SimulatedBackend(f"gpu-{i}", EngineConfig(kv_tokens=kv_tokens)) for i in range(engines)]
    flights = Simulation(core, lengths or TrueLengths(), fleet).run(arriving)
    return flights, report("x", flights, fleet)


@pytest.mark.parametrize("core", [Scheduler(10**6), DirectScheduler(), DirectScheduler(round_robin=True)])
def test_everything_is_answered_once_and_at_its_length(core):
    arriving = arrivals(rows(60), count=None, rate=20.0, seed=0)
    flights, result = run(core, arriving, engines=2)
    assert [flight.generated for flight in flights] == [200] * 60
    assert (result.n, result.refused) == (60, 0)


def test_known_lengths_spare_the_preemptions_that_sending_at_once_costs():
    arriving = arrivals(rows(200), count=None, rate=200.0, seed=0)
    _, direct = run(DirectScheduler(), arriving)
    _, held = run(Scheduler(10**6), arriving)
    assert direct.preemptions > 50
    assert held.preemptions < direct.preemptions / 20  # not none: the target feels its way up to the first


def test_lengths_are_learned_on_the_way():
    arriving = arrivals(rows(300, output_tokens=400), count=None, rate=100.0, seed=0)
    _, direct = run(DirectScheduler(), arriving)
    _, learned = run(Scheduler(10**6), arriving, lengths=LearnedLengths())
    assert learned.preemptions < direct.preemptions / 5


def test_a_prompt_that_no_context_holds_is_refused_and_holds_nobody_up():
    long, short = rows(1, input_tokens=5000), rows(20)
    flights, result = run(Scheduler(10**6), arrivals([*long, *short], count=None, rate=50.0, seed=1))
    assert (result.n, result.refused) == (20, 1)
    assert sum(not flight.answered for flight in flights) == 1


def test_the_same_seed_gives_the_same_run():
    arriving = arrivals(rows(50), count=40, rate=30.0, seed=3)
    results = [msgspec.structs.asdict(run(Scheduler(10**6), arriving)[1]) for _ in range(2)]
    assert results[0] == results[1]


def test_times_are_stretched_to_a_rate():
    arriving = arrivals(rows(11, t=lambda i: 100.0 + i**2), count=None, rate=2.0, seed=0)
    assert arriving[0].arrival_s == 0.0
    assert arriving[-1].arrival_s == pytest.approx(5.0)
    assert arriving[1].arrival_s == pytest.approx(0.05)


def test_rows_without_times_need_a_rate():
    with pytest.raises(ValueError, match="rate"):
        arrivals(rows(3), count=None, rate=None, seed=0)
