"""The scheduler on simulated engines, with workloads small enough to check by hand."""

import msgspec
import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.engine import ContinuousEngine, FcfsQueue
from backends.simulator.engine.advance import SteppedEngine
from backends.simulator.engine.prefix_cache import PrefixCachingKV
from gateway.errors import StarvedError
from gateway.scheduling.messages import Dispatch, Drop, DropReason, QueueLimits, Submit
from gateway.simulation.core import NAMES, build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import LearnedLengths, ScaledLengths
from gateway.simulation.report import report
from gateway.simulation.run import Simulation
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def run(core, arriving, *, lengths=None, engines=1, kv_tokens=4096, backend=SimulatedBackend, **options):
    fleet = [backend(f"gpu-{i}", EngineConfig(kv_tokens=kv_tokens)) for i in range(engines)]
    core = build_core(core) if isinstance(core, str) else core
    result = Simulation(core, lengths or ScaledLengths(1.0), fleet, **options).run(arriving)
    return result, report("x", result)


class SteppedBackend(SimulatedBackend):
    """A backend whose engine runs each of its steps singly."""

    def __init__(self, name, config):
        super().__init__(name, config)
        kv = PrefixCachingKV(config.num_gpu_blocks, config.block_size)
        engine = ContinuousEngine(config.hardware.step_time, kv, FcfsQueue())
        self._engine = SteppedEngine(engine)


class Holding:
    """A core that never sends anything."""

    def step(self, messages, now):
        return []


class Dropping:
    """A core that sends the first request and drops the others."""

    def __init__(self):
        self.sent = False

    def step(self, messages, now):
        actions = []
        for message in messages:
            if isinstance(message, Submit):
                drop = Drop(message.request.id, DropReason.QUEUE_FULL, retry_after_s=7.0)
                actions.append(drop if self.sent else Dispatch(message.request.id, "gpu-0"))
                self.sent = True
        return actions


@pytest.mark.parametrize("policy", NAMES)
def test_every_request_is_answered_once_with_its_own_length(policy):
    arriving = arrivals(rows(60), count=None, rate=20.0, seed=0)
    result, figures = run(policy, arriving, engines=2)
    assert [trace.generated for trace in result.requests] == [200] * 60
    assert (figures.n, figures.refused, figures.dropped) == (60, 0, 0)


def test_known_lengths_avoid_the_preemptions_of_direct_dispatch():
    arriving = arrivals(rows(200), count=None, rate=200.0, seed=0)
    _, direct = run("direct", arriving)
    _, held = run("fcfs", arriving)
    assert direct.preemptions > 50
    assert held.preemptions < direct.preemptions / 20


def test_lengths_are_learned_during_the_run():
    arriving = arrivals(rows(160, output_tokens=400), count=None, rate=100.0, seed=0)
    _, direct = run("direct", arriving)
    _, learned = run("fcfs", arriving, lengths=LearnedLengths())
    assert learned.preemptions < direct.preemptions / 2


def test_a_prompt_longer_than_the_context_is_refused_and_delays_no_other():
    long, short = rows(1, input_tokens=5000), rows(20)
    result, figures = run("fcfs", arrivals([*long, *short], count=None, rate=50.0, seed=1))
    assert (figures.n, figures.refused) == (20, 1)
    assert sum(not trace.answered for trace in result.requests) == 1


def test_the_same_seed_gives_the_same_run():
    arriving = arrivals(rows(50), count=40, rate=30.0, seed=3)
    results = [msgspec.structs.asdict(run("hrrn", arriving)[1]) for _ in range(2)]
    assert results[0] == results[1]


@pytest.mark.parametrize("policy", ["direct", "round-robin"])
def test_a_stretch_gives_the_same_times_as_single_steps(policy):
    arriving = arrivals(rows(80, output_tokens=lambda i: 1 + 7 * i % 300), count=None, rate=25.0, seed=0)
    stretched, in_stretches = run(policy, arriving, engines=3, kv_tokens=2048)
    stepped, in_steps = run(policy, arriving, engines=3, kv_tokens=2048, backend=SteppedBackend)
    assert [(f.first_token_s, f.finished_s) for f in stretched.requests] == [
        (f.first_token_s, f.finished_s) for f in stepped.requests
    ]
    assert in_stretches.preemptions == in_steps.preemptions
    assert in_stretches.tok_per_s == pytest.approx(in_steps.tok_per_s, rel=0.01)
    assert in_stretches.kv_util == pytest.approx(in_steps.kv_util)


def test_a_core_that_never_dispatches_is_an_error():
    with pytest.raises(StarvedError, match="3 requests"):
        run(Holding(), arrivals(rows(3), count=None, rate=1.0, seed=0))


def test_drops_are_counted_with_their_retry_times():
    result, figures = run(Dropping(), arrivals(rows(4), count=None, rate=10.0, seed=0))
    assert (figures.n, figures.dropped, figures.refused) == (1, 3, 0)
    assert [trace.retry_after_s for trace in result.requests[1:]] == [7.0] * 3


def test_a_bounded_queue_drops_requests_beyond_its_bound():
    arriving = arrivals(rows(300), count=None, rate=500.0, seed=0)
    result, figures = run(build_core("hrrn", limits=QueueLimits(20, 10**9)), arriving)
    assert figures.dropped > 100
    assert figures.n + figures.dropped == 300
    assert max(depth for _, depth in result.depths) <= 20


def test_a_request_that_waits_too_long_is_dropped():
    arriving = arrivals(rows(100), count=None, rate=1000.0, seed=0)
    result, figures = run("fcfs", arriving, kv_tokens=1024, queue_timeout_s=5.0)
    dropped = [trace for trace in result.requests if trace.dropped_s < 1e9]
    assert figures.dropped == len(dropped) > 10
    assert all(5.0 <= trace.dropped_s - trace.arrival.arrival_s < 6.0 for trace in dropped)


def test_throughput_is_measured_until_the_last_arrival():
    arriving = arrivals(rows(2, output_tokens=100, t=lambda i: 100.0 * i), count=None, rate=None, seed=0)
    result, figures = run("direct", arriving)
    assert result.window_s == 100.0
    assert figures.tok_per_s == pytest.approx(1.0)
    assert figures.req_per_s == pytest.approx(0.01)
    assert figures.makespan_s > 100.0


def test_memory_use_is_measured_over_the_run_and_while_requests_wait():
    _, idle = run("direct", arrivals(rows(2, t=lambda i: 500.0 * i), count=None, rate=None, seed=0))
    _, busy = run("direct", arrivals(rows(200), count=None, rate=500.0, seed=0))
    assert idle.kv_util < 0.01
    assert (idle.kv_util_waiting, idle.waiting_share) == (0.0, 0.0)
    assert busy.kv_util_waiting > 0.9
    assert 0.5 < busy.waiting_share <= 1.0
