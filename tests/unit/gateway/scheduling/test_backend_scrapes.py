import pytest

from gateway.scheduling.backend_load import STALE_TARGET
from gateway.scheduling.scrape_estimates import LASTING_SCRAPES, MAX_SHARED, STALE_S, STALE_SCRAPES, TARGET
from tests.unit.gateway.scheduling.backend_loads import admit, load_of, request, scrape

# What a look corrects


def test_memory_that_others_use_is_not_given_away():
    load = load_of(request("a", prompt=100))
    scrape(load, kv_used_tokens=400)
    assert load.budget_tokens == pytest.approx(TARGET * 1000 - 300)


def test_memory_in_use_for_a_moment_is_nobody_else_s():
    load = load_of(request("a", prompt=100))
    scrape(load, kv_used_tokens=100)
    scrape(load, kv_used_tokens=400)
    assert load.unaccounted.tokens == 0
    for _ in range(LASTING_SCRAPES - 1):
        scrape(load, kv_used_tokens=400)
    assert load.unaccounted.tokens == 300


def test_memory_that_others_free_is_ours_again():
    load = load_of(request("a", prompt=100))
    for used in [400] * LASTING_SCRAPES + [100]:
        scrape(load, kv_used_tokens=used)
    assert load.unaccounted.tokens == 0


def test_our_own_use_is_not_taken_for_others():
    load = load_of(request("a", prompt=500))
    scrape(load, kv_used_tokens=500)
    assert load.unaccounted.tokens == 0


def test_prefixes_that_requests_share_make_room_up_to_a_part():
    load = load_of(*(request(str(i), prompt=100) for i in range(8)))
    for _ in range(100):
        scrape(load, kv_used_tokens=700, running=8, waiting=0)
    assert load.unaccounted.tokens == pytest.approx(-100, abs=1)
    for _ in range(100):
        scrape(load, kv_used_tokens=10, running=8, waiting=0)
    assert load.unaccounted.tokens == pytest.approx(-MAX_SHARED * 800, abs=1)


@pytest.mark.parametrize("seen", [{"running": 6, "waiting": 2}, {"running": 6}, {"running": None}])
def test_requests_that_have_not_begun_are_no_shared_prefixes(seen):
    load = load_of(*(request(str(i), prompt=100) for i in range(8)))
    for _ in range(20):
        scrape(load, kv_used_tokens=600, **seen)
    assert load.unaccounted.tokens == 0


def test_what_the_engine_rounds_up_to_is_learned_from_it():
    load = load_of()
    scrape(load, kv_block_tokens=16, reserving=True)
    admit(load, request("a", prompt=100, output=29))
    assert load.ledger.held_tokens == 144


# Looks that show nothing


def freeze(load, looks):
    """Look again and again, each time with one more request sent, and see the same."""
    for _ in range(looks):
        now = float(len(load.ledger))
        admit(load, request(f"one more than {now}"), now)
        scrape(load, now)


def test_looks_that_never_change_while_work_comes_are_not_believed():
    load = load_of(request("a"), kv_used_tokens=300, running=3)
    freeze(load, STALE_SCRAPES - 1)
    assert load.freshness.is_fresh
    freeze(load, 1)
    assert not load.freshness.is_fresh
    assert load.unaccounted.tokens == 0
    assert load.budget_tokens == pytest.approx(STALE_TARGET * 1000)


def test_a_look_that_shows_something_new_is_believed_at_once():
    load = load_of(request("a"), kv_used_tokens=300, running=3)
    freeze(load, STALE_SCRAPES + 1)
    scrape(load, 9.0, kv_used_tokens=310)
    assert load.freshness.is_fresh


def test_an_engine_that_does_nothing_may_look_the_same_for_ever():
    load = load_of(kv_used_tokens=0, running=0)
    for number in range(50):
        scrape(load, float(number))
    assert load.freshness.is_fresh


def test_an_engine_that_tells_nothing_of_its_memory_is_not_doubted():
    load = load_of(request("a"), kv_capacity_tokens=None)
    freeze(load, 3 * STALE_SCRAPES)
    assert load.freshness.is_fresh


def test_a_look_that_is_old_when_it_comes_is_not_believed():
    load = load_of()
    scrape(load, 100.0, scraped_s=100.0 - STALE_S, kv_used_tokens=100)
    assert load.freshness.is_fresh
    scrape(load, 100.0, scraped_s=99.0 - STALE_S, kv_used_tokens=200)
    assert not load.freshness.is_fresh
