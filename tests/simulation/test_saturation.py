from backends.simulator.config import EngineConfig
from gateway.simulation.core import build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import ScaledLengths
from gateway.simulation.report import report
from gateway.simulation.run import Simulation
from gateway.simulation.saturation import saturation
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def test_the_rate_can_be_sustained_and_a_higher_one_cannot():
    config = EngineConfig(kv_tokens=4096)
    past = rows(600, output_tokens=lambda i: 20 + 37 * i % 500)
    one = saturation(arrivals(past, count=None, rate=1000.0, seed=0), config)

    def mean_s(load):
        arriving = arrivals(past, count=None, rate=load * one.req_per_s, seed=0)
        simulation = Simulation(build_core("fcfs"), ScaledLengths(1.0), [SimulatedBackend("gpu-0", config)])
        return report("fcfs", simulation.run(arriving)).mean_s

    assert mean_s(0.8) < 2 * one.service_s
    assert mean_s(1.5) > 4 * one.service_s
