"""Comparing only the heads of lanes loses at most one length class against the best response ratio."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.scheduling.policies import CLASS_RATIO, Fcfs, Hrrn, Sjf
from gateway.scheduling.queue import ModelQueue, WaitingRequest

NOW = 1000.0
ROUNDING = 1 + 1e-9
LENGTH = LengthQuantiles.of((10,) * 6)

waits = st.lists(
    st.tuples(st.floats(0, NOW) | st.sampled_from([0.0, 1.0, NOW]), st.floats(1e-3, 1e4) | st.floats(0.9, 3)),
    min_size=1,
    max_size=30,
)
alphas = st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0, 1.5])


def queued(policy, waits):
    """A queue with one request for each (wait, service) in the given order, which is not that of arrival."""
    queue = ModelQueue(policy)
    for number, (wait_s, service_s) in enumerate(waits):
        arrival_s = NOW - wait_s
        queue.push(WaitingRequest(Request(str(number), "m", 1, LENGTH, arrival_s, arrival_s + 1e6), service_s, 10.0))
    return queue


def drained(queue):
    while head := queue.most_urgent(NOW):
        yield head
        queue.pop(head.request.id)


def loss(alpha):
    """Return the bound of the best ratio of all over that of the chosen request.

    Let r be the best of all, and h the head of its lane: h waits at least as long, and its service time s_h is within
    one class of s_r. More waiting only helps h, so let both wait w. The ratio of r over that of h is

        (w + s_r) / (w + s_h) * (s_h / s_r) ** alpha.

    With s_h > s_r the first factor is at most 1 and the second at most c ** alpha, where c is the class ratio. With
    s_h < s_r the two are at most s_r / s_h * (s_h / s_r) ** alpha <= c ** (1 - alpha). The chosen one is at least h's.
    """
    return CLASS_RATIO ** max(alpha, 1 - alpha)


@given(waits, alphas)
def test_chosen_ratio_is_within_one_class_of_the_best(waits, alpha):
    policy = Hrrn(alpha)
    queue = queued(policy, waits)
    everyone = {
        str(number): policy.urgency(NOW - wait_s, service_s, NOW) for number, (wait_s, service_s) in enumerate(waits)
    }
    for head in drained(queue):
        assert max(everyone.values()) <= everyone.pop(head.request.id) * loss(alpha) * ROUNDING
    assert not everyone


@given(waits, st.sampled_from([Fcfs(), Sjf(), Hrrn(), Hrrn(0.5)]))
def test_requests_of_one_lane_go_in_order_of_arrival(waits, policy):
    queue = queued(policy, waits)
    last = {}
    for head in drained(queue):
        lane, order = queue.lane_key(head), (head.request.arrival_s, int(head.request.id))
        assert last.get(lane, (-1.0, 0)) <= order
        last[lane] = order


@given(waits)
def test_first_come_first_served_is_exact(waits):
    arrivals = [head.request.arrival_s for head in drained(queued(Fcfs(), waits))]
    assert arrivals == sorted(arrivals)


@given(waits)
def test_shortest_job_goes_first_within_one_class(waits):
    left = sorted(service_s for _, service_s in waits)
    for head in drained(queued(Sjf(), waits)):
        assert head.service_s <= left[0] * CLASS_RATIO * ROUNDING
        left.remove(head.service_s)


@given(waits, st.data())
def test_returned_request_finds_its_place(waits, data):
    policy = data.draw(st.sampled_from([Fcfs(), Hrrn()]))
    untouched, queue = queued(policy, waits), queued(policy, waits)
    for number in data.draw(st.lists(st.integers(0, len(waits) - 1), max_size=10)):
        queue.push_back(queue.pop(str(number)))
    assert queue.tokens == untouched.tokens
    before, after = [[head.request for head in drained(each)] for each in (untouched, queue)]
    if len({request.arrival_s for request in before}) == len(waits):  # requests of one arrival time may swap
        assert after == before
