"""The waiting requests of one model, sorted into lanes, and the rate at which the queues drain.

A lane holds the requests of one priority and one length class in the order of their arrival. Requests that a backend
has failed, and batches that may not grow, have lanes of their own. The queue only compares the heads of its lanes, of
which there are some forty, however many requests wait.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import exp, inf
from typing import NamedTuple

from gateway.scheduling.messages import Request
from gateway.scheduling.policies import Policy

OVERDUE_SHARE = 0.5
"""Share of the time to its deadline after which a request competes with the most urgent priority."""

MAX_LANE_SCAN = 256
"""Most requests of one lane that are considered for one batch."""

RATE_WINDOW_S = 30.0
"""Time constant of the dispatch rate, in seconds."""

MAX_RETRY_AFTER_S = 120.0
"""Longest Retry-After that a rejected request gets, in seconds."""


@dataclass(slots=True)
class WaitingRequest:
    """A request in the queue.

    Attributes:
        service_s: predicted service time in seconds, weighed by the request's share of memory.
        output_tokens: predicted tokens of one answer.
        failed_on: names of the backends that have failed the request.
        avoids: names of the backends that the request does not wait for now, besides those that have failed it.
        closed_batch: number of the batch that the request belongs to and that no other may join; 0 for none.
        tokens: tokens of the prompt and of the predicted answers.
    """

    request: Request
    service_s: float
    output_tokens: float
    failed_on: frozenset[str] = frozenset()
    closed_batch: int = 0
    avoids: frozenset[str] = frozenset()
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = self.request.prompt_tokens + round(self.output_tokens) * self.request.sequences


class LaneKey(NamedTuple):
    """The values that all requests of one lane share. `closed_batch` is 0 where others may join the batch.

    `avoids` names the backends that have failed the requests, and those that they do not wait for.
    """

    priority: int
    length_class: int
    avoids: frozenset[str]
    closed_batch: int


Lane = OrderedDict[str, WaitingRequest]


@dataclass(slots=True)
class ModelQueue:
    """All lanes of one model.

    Attributes:
        policy: assigns requests to lanes and orders the heads of the lanes.
        tokens: tokens of the prompts and predicted answers of all waiting requests.
        next_deadline_s: no waiting request has an earlier deadline; `pop_expired` renews this bound.
    """

    policy: Policy
    tokens: int = 0
    next_deadline_s: float = inf
    _lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    _lane_of: dict[str, LaneKey] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._lane_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._lane_of

    def push(self, waiting: WaitingRequest) -> None:
        """Add a request behind all that arrived before it. The right place is usually the end of its lane."""
        lane = self._enter(waiting)
        arrival_s = waiting.request.arrival_s
        newer = takewhile(lambda other: other.request.arrival_s > arrival_s, reversed(lane.values()))
        ids = [other.request.id for other in newer]
        lane[waiting.request.id] = waiting
        for request_id in reversed(ids):
            lane.move_to_end(request_id)

    def push_back(self, waiting: WaitingRequest) -> None:
        """Put back a request that had left, before all that arrived later. The right place is usually the front."""
        lane = self._enter(waiting)
        arrival_s = waiting.request.arrival_s
        older = takewhile(lambda other: other.request.arrival_s <= arrival_s, lane.values())
        ids = [other.request.id for other in older]
        lane[waiting.request.id] = waiting
        for request_id in reversed([*ids, waiting.request.id]):
            lane.move_to_end(request_id, last=False)

    def pop(self, request_id: str) -> WaitingRequest | None:
        """Remove a request and return it; return None if it does not wait here."""
        key = self._lane_of.pop(request_id, None)
        if key is None:
            return None
        lane = self._lanes[key]
        waiting = lane.pop(request_id)
        if not lane:
            del self._lanes[key]
        self.tokens -= waiting.tokens
        return waiting

    def pop_expired(self, now: float) -> Iterator[WaitingRequest]:
        """Remove the requests whose deadline has passed and yield them.

        Requests of one lane arrive and expire in the same order, so only the heads have to be compared.
        """
        if now < self.next_deadline_s:
            return
        while due := [head for head in self.heads() if head.request.deadline_s <= now]:
            for head in due:
                self.pop(head.request.id)
                yield head
        self.next_deadline_s = min((head.request.deadline_s for head in self.heads()), default=inf)

    def reorder(self, policy: Policy, avoids: Callable[[Request], frozenset[str]] | None = None) -> None:
        """Sort all waiting requests anew.

        Args:
            policy: the order from now on.
            avoids: returns the backends that a request does not wait for from now on; None for no change.
        """
        waiting = [entry for lane in self._lanes.values() for entry in lane.values()]
        self.policy, self.tokens = policy, 0
        self._lanes.clear()
        self._lane_of.clear()
        for entry in sorted(waiting, key=lambda entry: entry.request.arrival_s):
            if avoids is not None:
                entry.avoids = avoids(entry.request)
            self.push(entry)

    def heads(self) -> Iterator[WaitingRequest]:
        """Return the oldest request of each lane."""
        return (next(iter(lane.values())) for lane in self._lanes.values())

    def most_urgent(self, now: float, passed_over: Container[str] = ()) -> WaitingRequest | None:
        """Return the head that goes next, by priority and then by the policy's urgency; None if there is none.

        Args:
            now: monotonic seconds.
            passed_over: ids of heads that are left out.
        """
        urgency = self.policy.urgency
        lowest = min((key.priority for key in self._lanes), default=0)
        best, best_rank = None, (inf, inf, inf)
        for key, lane in self._lanes.items():
            head = next(iter(lane.values()))
            request = head.request
            arrival_s = request.arrival_s
            priority = key.priority
            if priority > lowest and is_overdue(request, now):
                priority = lowest
            rank = (priority, -urgency(arrival_s, head.service_s, now), arrival_s)
            if rank < best_rank and request.id not in passed_over:
                best, best_rank = head, rank
        return best

    def similar(self, waiting: WaitingRequest) -> Iterator[WaitingRequest]:
        """Yield the requests that may share a batch with this one, the most similar length first.

        Requests of one length class come in the order of arrival. A closed batch is shared only among its members.
        """
        own = self.lane_key(waiting)
        if own.closed_batch:
            keys = [own]
        else:
            keys = [key for key in self._lanes if key.priority == own.priority and not key.closed_batch]
            keys.sort(key=lambda key: (abs(key.length_class - own.length_class), key.length_class))
        for key in keys:
            yield from list(islice(self._lanes.get(key, Lane()).values(), MAX_LANE_SCAN))  # a lane may be gone by now

    def count_by_class(self) -> dict[int, int]:
        """Return the number of waiting requests in each length class."""
        counts: dict[int, int] = {}
        for key, lane in self._lanes.items():
            counts[key.length_class] = counts.get(key.length_class, 0) + len(lane)
        return counts

    def lane_key(self, waiting: WaitingRequest) -> LaneKey:
        """Return the key of the lane that a request belongs to."""
        length_class = self.policy.lane(waiting.service_s)
        avoids = waiting.failed_on | waiting.avoids if waiting.avoids else waiting.failed_on
        return LaneKey(waiting.request.priority, length_class, avoids, waiting.closed_batch)

    def _enter(self, waiting: WaitingRequest) -> Lane:
        key = self.lane_key(waiting)
        self._lane_of[waiting.request.id] = key
        self.tokens += waiting.tokens
        self.next_deadline_s = min(self.next_deadline_s, waiting.request.deadline_s)
        return self._lanes.setdefault(key, Lane())


def is_overdue(request: Request, now: float) -> bool:
    """Return whether a request has waited so long that its priority no longer holds it back."""
    return now - request.arrival_s > OVERDUE_SHARE * (request.deadline_s - request.arrival_s)


@dataclass(slots=True)
class DispatchRate:
    """Dispatches per second, weighted exponentially over `RATE_WINDOW_S`. Retry-After is computed from it.

    >>> rate = DispatchRate()
    >>> for second in range(300):
    ...     rate.count(float(second))
    >>> round(rate.retry_after_s(20, 300.0))
    20
    """

    _weight: float = 0.0
    _updated_s: float = 0.0

    def count(self, now: float) -> None:
        """Count one dispatch."""
        self._weight = self._decayed(now) + 1.0
        self._updated_s = now

    def retry_after_s(self, requests: int, now: float) -> float:
        """Return the seconds until `requests` have left the queue, between 1 and `MAX_RETRY_AFTER_S`."""
        per_s = self._decayed(now) / RATE_WINDOW_S
        return min(MAX_RETRY_AFTER_S, max(1.0, requests / per_s)) if per_s > 0 else MAX_RETRY_AFTER_S

    def _decayed(self, now: float) -> float:
        return self._weight * exp((self._updated_s - now) / RATE_WINDOW_S)
