from backends.simulator.config import EngineConfig
from gateway.simulation.fleet import ScrapeModel, SimulatedBackend
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def working_backend():
    backend = SimulatedBackend("gpu-0", EngineConfig(kv_tokens=4096))
    for arrival in arrivals(rows(3), count=None, rate=100.0, seed=0):
        backend.accepts(arrival, 0.0)
    return backend


def test_a_scrape_shows_the_engine_at_its_time():
    backend = working_backend()
    before = ScrapeModel().scrape(backend, 0.0)
    backend.begin(0.0)
    seen = ScrapeModel().scrape(backend, 0.01)
    assert (before.running, before.waiting, before.kv_used_tokens) == (0, 3, 0)
    assert (seen.running, seen.waiting, seen.kv_used_tokens, seen.scraped_s) == (3, 0, 3 * 112, 0.01)


def test_a_scrape_within_a_stretch_shows_the_current_step():
    backend = working_backend()
    backend.begin(0.0)
    backend.end()
    backend.begin(1.0)
    assert backend.ends_s > 1.1
    shown = [ScrapeModel().scrape(backend, at_s).kv_used_tokens for at_s in (1.0, 1.1, backend.ends_s)]
    assert shown[0] <= shown[1] <= shown[2] == 3 * 128


def test_frozen_scrapes_repeat_the_first_metrics_with_a_new_time():
    backend, scrapes = working_backend(), ScrapeModel(frozen_from_s=5.0)
    scrapes.scrape(backend, 1.0)
    first = scrapes.scrape(backend, 6.0)
    backend.begin(6.0)
    later = scrapes.scrape(backend, 9.0)
    assert (first.running, later.running) == (0, 0)
    assert (first.scraped_s, later.scraped_s) == (6.0, 9.0)


def test_blind_scrapes_show_that_the_engine_exists_and_no_metrics():
    backend = working_backend()
    seen = ScrapeModel(blind=True).scrape(backend, 2.0)
    assert (seen.name, seen.healthy, seen.models) == ("gpu-0", True, frozenset({"model"}))
    assert {seen.kv_capacity_tokens, seen.kv_used_tokens, seen.waiting, seen.running, seen.preemptions} == {None}
