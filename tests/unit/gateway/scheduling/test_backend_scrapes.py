import pytest

from gateway.scheduling.backend_load import STALE_TARGET
from gateway.scheduling.scrape_estimates import LASTING_SCRAPES, MAX_SHARED, STALE_S, STALE_SCRAPES, TARGET
from tests.unit.gateway.scheduling.backend_loads import admit, load_of, request, scrape

# Corrections by a scrape


def test_memory_used_by_other_clients_is_not_planned():
    load = load_of(request("a", prompt=100))
    scrape(load, kv_used_tokens=400)
    assert load.budget_tokens == pytest.approx(TARGET * 1000 - 300)


def test_short_use_of_memory_is_not_attributed_to_other_clients():
    load = load_of(request("a", prompt=100))
    scrape(load, kv_used_tokens=100)
    scrape(load, kv_used_tokens=400)
    assert load.unaccounted.tokens == 0
    for _ in range(LASTING_SCRAPES - 1):
        scrape(load, kv_used_tokens=400)
    assert load.unaccounted.tokens == 300


def test_memory_freed_by_other_clients_is_available_again():
    load = load_of(request("a", prompt=100))
    for used in [400] * LASTING_SCRAPES + [100]:
        scrape(load, kv_used_tokens=used)
    assert load.unaccounted.tokens == 0


def test_own_use_is_not_attributed_to_other_clients():
    load = load_of(request("a", prompt=500))
    scrape(load, kv_used_tokens=500)
    assert load.unaccounted.tokens == 0


def test_shared_prefixes_make_room_up_to_a_limit():
    load = load_of(*(request(str(i), prompt=100) for i in range(8)))
    for _ in range(100):
        scrape(load, kv_used_tokens=700, running=8, waiting=0)
    assert load.unaccounted.tokens == pytest.approx(-100, abs=1)
    for _ in range(100):
        scrape(load, kv_used_tokens=10, running=8, waiting=0)
    assert load.unaccounted.tokens == pytest.approx(-MAX_SHARED * 800, abs=1)


@pytest.mark.parametrize("seen", [{"running": 6, "waiting": 2}, {"running": 6}, {"running": None}])
def test_requests_that_have_not_started_are_no_shared_prefixes(seen):
    load = load_of(*(request(str(i), prompt=100) for i in range(8)))
    for _ in range(20):
        scrape(load, kv_used_tokens=600, **seen)
    assert load.unaccounted.tokens == 0


def test_overhead_of_block_rounding_is_learned_from_the_engine():
    load = load_of()
    scrape(load, kv_block_tokens=16, reserving=True)
    admit(load, request("a", prompt=100, output=29))
    assert load.ledger.held_tokens == 144


# Scrapes that do not change


def freeze(load, looks):
    """Scrape repeatedly, with one more request sent each time and no change in the metrics."""
    for _ in range(looks):
        now = float(len(load.ledger))
        admit(load, request(f"one more than {now}"), now)
        scrape(load, now)


def test_metrics_that_do_not_change_while_work_is_dispatched_are_stale():
    load = load_of(request("a"), kv_used_tokens=300, running=3)
    freeze(load, STALE_SCRAPES - 1)
    assert load.freshness.is_fresh
    freeze(load, 1)
    assert not load.freshness.is_fresh
    assert load.unaccounted.tokens == 0
    assert load.budget_tokens == pytest.approx(STALE_TARGET * 1000)


def test_changed_metrics_are_fresh_at_once():
    load = load_of(request("a"), kv_used_tokens=300, running=3)
    freeze(load, STALE_SCRAPES + 1)
    scrape(load, 9.0, kv_used_tokens=310)
    assert load.freshness.is_fresh


def test_metrics_of_an_idle_engine_may_stay_the_same():
    load = load_of(kv_used_tokens=0, running=0)
    for number in range(50):
        scrape(load, float(number))
    assert load.freshness.is_fresh


def test_engine_without_memory_metrics_is_never_stale():
    load = load_of(request("a"), kv_capacity_tokens=None)
    freeze(load, 3 * STALE_SCRAPES)
    assert load.freshness.is_fresh


def test_scrape_that_arrives_late_is_stale():
    load = load_of()
    scrape(load, 100.0, scraped_s=100.0 - STALE_S, kv_used_tokens=100)
    assert load.freshness.is_fresh
    scrape(load, 100.0, scraped_s=99.0 - STALE_S, kv_used_tokens=200)
    assert not load.freshness.is_fresh
