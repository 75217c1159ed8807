from gateway.scheduling.backend_load import REMEMBERED_PREFIXES, PrefixCache
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Prefix, Request

LENGTH = LengthQuantiles.of((10,) * 6)


def request(*prefixes):
    return Request("a", "m", 1000, LENGTH, 0.0, 1.0, prefixes=tuple(Prefix(key, tokens) for key, tokens in prefixes))


def memory_of(*requests):
    memory = PrefixCache()
    for each in requests:
        memory.add(each)
    return memory


def test_backend_without_requests_shares_no_prefix():
    assert PrefixCache().cached_tokens(request((1, 100))) == 0


def test_longest_known_prefix_is_shared():
    memory = memory_of(request((12, 500), (1, 100)))
    assert memory.cached_tokens(request((123, 900), (12, 500), (1, 100))) == 500
    assert memory.cached_tokens(request((13, 700), (1, 100))) == 100
    assert memory.cached_tokens(request((2, 100))) == 0


def test_request_without_prefixes_adds_and_finds_nothing():
    memory = memory_of(request(), request((1, 100)))
    assert memory.cached_tokens(request()) == 0


def test_least_recently_used_prefix_is_evicted():
    memory = memory_of(request((0, 100)), *(request((key, 100)) for key in range(1, REMEMBERED_PREFIXES)))
    assert memory.cached_tokens(request((0, 100))) == 100
    memory.add(request((REMEMBERED_PREFIXES, 100)))
    assert memory.cached_tokens(request((0, 100))) == 0
    assert memory.cached_tokens(request((1, 100))) == 100


def test_prefix_that_is_used_again_stays():
    memory = memory_of(
        request((0, 100)), *(request((key, 100)) for key in range(1, REMEMBERED_PREFIXES)), request((0, 100))
    )
    memory.add(request((REMEMBERED_PREFIXES, 100)))
    assert memory.cached_tokens(request((0, 100))) == 100


def test_prefix_of_many_prompts_outlives_its_continuations():
    memory = memory_of(*(request((1000 + turn, 900), (1, 100)) for turn in range(REMEMBERED_PREFIXES + 10)))
    assert memory.cached_tokens(request((1, 100))) == 100
    assert memory.cached_tokens(request((1000, 900))) == 0
