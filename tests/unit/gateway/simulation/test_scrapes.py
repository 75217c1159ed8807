from backends.simulator.config import EngineConfig
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.scrapes import ScrapeModel
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def working_backend():
    backend = SimulatedBackend("gpu-0", EngineConfig(kv_tokens=4096))
    for arrival in arrivals(rows(3), count=None, rate=100.0, seed=0):
        backend.accepts(arrival, 0.0)
    return backend


def test_a_look_shows_the_engine_as_of_then():
    backend = working_backend()
    before = ScrapeModel().at(backend, 0.0)
    backend.begin(0.0)
    seen = ScrapeModel().at(backend, 0.01)
    assert (before.running, before.waiting, before.kv_used_tokens) == (0, 3, 0)
    assert (seen.running, seen.waiting, seen.kv_used_tokens, seen.scraped_s) == (3, 0, 3 * 112, 0.01)


def test_a_look_within_a_stretch_shows_the_step_under_way():
    backend = working_backend()
    backend.begin(0.0)
    backend.end()
    backend.begin(1.0)
    assert backend.ends_s > 1.1
    shown = [ScrapeModel().at(backend, at_s).kv_used_tokens for at_s in (1.0, 1.1, backend.ends_s)]
    assert shown[0] <= shown[1] <= shown[2] == 3 * 128


def test_frozen_looks_show_what_they_showed_and_claim_to_be_fresh():
    backend, looks = working_backend(), ScrapeModel(frozen_from_s=5.0)
    looks.at(backend, 1.0)
    first = looks.at(backend, 6.0)
    backend.begin(6.0)
    later = looks.at(backend, 9.0)
    assert (first.running, later.running) == (0, 0)
    assert (first.scraped_s, later.scraped_s) == (6.0, 9.0)


def test_blind_looks_show_that_the_engine_is_there_and_no_more():
    backend = working_backend()
    seen = ScrapeModel(blind=True).at(backend, 2.0)
    assert (seen.name, seen.healthy, seen.models) == ("gpu-0", True, frozenset({"model"}))
    assert {seen.kv_capacity_tokens, seen.kv_used_tokens, seen.waiting, seen.running, seen.preemptions} == {None}
