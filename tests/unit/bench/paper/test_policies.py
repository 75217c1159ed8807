from bench.paper.policies import Vanilla, WmaBatches
from bench.paper.testbed import Testbed
from gateway.scheduling.batch_time import KnnBatchTime
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from tests.unit.bench.paper.batches import filled, taken

KV = Testbed().kv_capacity_tokens


def request(id, output=100, prompt=50, arrival=0.0, spread=1.0):
    quantiles = tuple(output * spread**score for score in (-1.28, -0.67, 0, 0.67, 1.28, 1.64))
    return Request(str(id), "m", prompt, LengthQuantiles.of(quantiles, cap=1024), arrival, 1e9)


def estimator():
    return KnnBatchTime(Testbed().batch_time)


def test_vanilla_takes_seven_requests_in_order_of_arrival():
    policy = filled(Vanilla(7), *(request(i, output=10 + 100 * (i % 3)) for i in range(9)))
    assert taken(policy) == [["0", "1", "2", "3", "4", "5", "6"], ["7", "8"]]


def test_requests_of_similar_length_share_a_batch():
    lengths = [20, 900, 22, 880, 21]
    policy = filled(WmaBatches(KV), *(request(i, output) for i, output in enumerate(lengths)))
    assert taken(policy) == [["0", "2", "4"], ["1", "3"]]


def test_an_arrival_joins_the_batch_with_the_least_waste():
    policy = filled(WmaBatches(KV), request("a", 500), request("b", 100), request("c", 130))
    assert taken(policy) == [["a"], ["b", "c"]]


def test_a_fixed_size_opens_another_batch():
    policy = filled(WmaBatches(KV, size=2), *(request(i) for i in range(5)))
    assert [len(batch) for batch in taken(policy)] == [2, 2, 1]


def test_the_memory_test_closes_a_batch():
    policy = filled(WmaBatches(3 * 151), *(request(i) for i in range(5)))
    assert [len(batch) for batch in taken(policy)] == [3, 2]


def test_with_a_quantile_the_memory_test_is_stricter():
    requests = [request(i, spread=1.5) for i in range(5)]
    assert [len(batch) for batch in taken(filled(WmaBatches(5 * 200), *requests))] == [5]
    careful = filled(WmaBatches(5 * 200, memory_level=0.99), *requests)
    assert max(len(batch) for batch in taken(careful)) < 5


def test_highest_response_ratio_next_lets_a_short_batch_overtake():
    requests = [request("long", 1000, arrival=0.0), request("short", 10, arrival=1.0)]
    assert taken(filled(WmaBatches(KV), *requests)) == [["long"], ["short"]]
    assert taken(filled(WmaBatches(KV, estimator()), *requests)) == [["short"], ["long"]]


def test_halves_of_a_failed_batch_take_no_other_request():
    policy = WmaBatches(KV)
    policy.out_of_memory([request(i) for i in range(4)], now=1.0)
    policy.arrive(request("new"))
    assert sorted(taken(policy)) == [["0", "1"], ["2", "3"], ["new"]]
