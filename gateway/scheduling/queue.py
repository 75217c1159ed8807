"""One model's waiting requests, in lanes.

Requests of one priority and one length class wait in one lane, in the order of their arrival. The few that came back
from a backend that failed them, or that belong to a batch which is not to grow, have lanes of their own. Whatever is
asked of the queue is answered from the heads of its lanes, and there are some forty of them however many wait.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from typing import NamedTuple

from gateway.scheduling.messages import Request
from gateway.scheduling.policies import Policy

OVERDUE_SHARE = 0.5
"""Of the time to its deadline: a request that has waited for longer competes with the most urgent priority."""


LARGEST_WAVE = 256
"""Requests of one lane that are looked at for one batch."""


@dataclass(slots=True)
class Waiting:
    """A request in the queue, with its predicted service time and tokens."""

    request: Request
    service_s: float
    output_tokens: float
    failed_on: frozenset[str] = frozenset()
    closed_batch: int = 0
    tokens: int = field(init=False)
    """Prompt and predicted answers together."""

    def __post_init__(self) -> None:
        self.tokens = self.request.prompt_tokens + round(self.output_tokens) * self.request.sequences


class LaneKey(NamedTuple):
    """What the requests of one lane have in common; `closed_batch` is 0 where others may join."""

    priority: int
    length_class: int
    failed_on: frozenset[str]
    closed_batch: int


Lane = OrderedDict[str, Waiting]


@dataclass(slots=True)
class ModelQueue:
    """All lanes of one model; `tokens` are the sum over its waiting requests."""

    policy: Policy
    tokens: int = 0
    next_deadline_s: float = inf
    """No request that waits has to be gone before; a bound that `expired` renews."""
    _lanes: dict[LaneKey, Lane] = field(default_factory=dict)
    _lane_of: dict[str, LaneKey] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._lane_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._lane_of

    def push(self, waiting: Waiting) -> None:
        """Queue an arrival: one whose body took long to come goes before those that overtook it meanwhile."""
        lane = self._enter(waiting)
        arrival_s = waiting.request.arrival_s
        newer = takewhile(lambda other: other.request.arrival_s > arrival_s, reversed(lane.values()))
        ids = [other.request.id for other in newer]
        lane[waiting.request.id] = waiting
        for request_id in reversed(ids):
            lane.move_to_end(request_id)

    def push_back(self, waiting: Waiting) -> None:
        """Queue a request that had left: before all that arrived later, which is at the front or close to it."""
        lane = self._enter(waiting)
        arrival_s = waiting.request.arrival_s
        older = takewhile(lambda other: other.request.arrival_s <= arrival_s, lane.values())
        ids = [other.request.id for other in older]
        lane[waiting.request.id] = waiting
        for request_id in reversed([*ids, waiting.request.id]):
            lane.move_to_end(request_id, last=False)

    def pop(self, request_id: str) -> Waiting | None:
        """Take a request out, wherever it is; None if it does not wait here."""
        key = self._lane_of.pop(request_id, None)
        if key is None:
            return None
        lane = self._lanes[key]
        waiting = lane.pop(request_id)
        if not lane:
            del self._lanes[key]
        self.tokens -= waiting.tokens
        return waiting

    def expired(self, now: float) -> Iterator[Waiting]:
        """Take out whose time is over. Within a lane the order of arrival is that of deadlines, so heads tell."""
        if now < self.next_deadline_s:
            return
        while due := [head for head in self.heads() if head.request.deadline_s <= now]:
            for head in due:
                self.pop(head.request.id)
                yield head
        self.next_deadline_s = min((head.request.deadline_s for head in self.heads()), default=inf)

    def heads(self) -> Iterator[Waiting]:
        """Return the oldest of each lane."""
        return (next(iter(lane.values())) for lane in self._lanes.values())

    def most_urgent(self, now: float, passed_over: Container[str] = ()) -> Waiting | None:
        """Return the head that goes next: by priority, within one by the policy's urgency; None if all have passed.

        Args:
            now: monotonic seconds.
            passed_over: ids of heads that cannot go now.
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

    def alike(self, waiting: Waiting) -> Iterator[Waiting]:
        """Return who may share a batch with a request: its own lane first, then the lanes nearest in length.

        Within each in the order of arrival. Those in a closed batch share it with nobody else.
        """
        own = self.lane_key(waiting)
        if own.closed_batch:
            keys = [own]
        else:
            keys = [key for key in self._lanes if key.priority == own.priority and not key.closed_batch]
            keys.sort(key=lambda key: (abs(key.length_class - own.length_class), key.length_class))
        for key in keys:
            yield from list(islice(self._lanes.get(key, Lane()).values(), LARGEST_WAVE))  # the own one may be gone

    def by_class(self) -> dict[int, int]:
        """Return how many wait in each length class."""
        counts: dict[int, int] = {}
        for key, lane in self._lanes.items():
            counts[key.length_class] = counts.get(key.length_class, 0) + len(lane)
        return counts

    def lane_key(self, waiting: Waiting) -> LaneKey:
        """Return the lane that a request waits in."""
        length_class = self.policy.lane(waiting.service_s)
        return LaneKey(waiting.request.priority, length_class, waiting.failed_on, waiting.closed_batch)

    def _enter(self, waiting: Waiting) -> Lane:
        key = self.lane_key(waiting)
        self._lane_of[waiting.request.id] = key
        self.tokens += waiting.tokens
        self.next_deadline_s = min(self.next_deadline_s, waiting.request.deadline_s)
        return self._lanes.setdefault(key, Lane())


def is_overdue(request: Request, now: float) -> bool:
    """Tell whether a request has waited for so long that its priority counts no more."""
    return now - request.arrival_s > OVERDUE_SHARE * (request.deadline_s - request.arrival_s)
