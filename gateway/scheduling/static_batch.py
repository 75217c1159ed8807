"""Batches for static engines, formed when an engine is free: which requests share one with the most urgent request.

A static engine holds every member until the longest answer of the batch is complete, so each member costs time for all
the others. The value of a batch is the waiting that it ends per second of the engine, and a request joins if that does
not decrease. So requests of similar length go together; more of them the longer they have waited; and a request that
has waited long enough may join a batch that does not suit it. Lengths are high quantiles, not means: a batch lasts as
long as its longest member.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.scheduling.batch_time import BatchTime
from gateway.scheduling.demand import LengthBias
from gateway.scheduling.messages import Request
from gateway.scheduling.placement import Place
from gateway.scheduling.queue import ModelQueue

TIME_LEVEL = 0.9
"""Quantile of the answer's length that groups requests and predicts a batch's time."""

MEMORY_LEVEL = 0.99
"""Quantile of the answer's length that must fit: a batch that runs out of memory has run for nothing."""

FRESH_S = 1.0
"""Seconds added to every request's waiting time, so that a request that has just arrived counts too."""

MAX_REJECTED = 256
"""Candidates that may be rejected before the search for members ends."""


@dataclass(frozen=True, slots=True)
class StaticLimits:
    """The KV tokens and the batch rows that an engine holds; None means unknown."""

    kv_capacity_tokens: int | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """The padded shape of a batch.

    Attributes:
        size: rows.
        prompt_tokens: the longest prompt.
        output_tokens: the longest answer, for the batch's time.
        reserved_tokens: the longest answer, for the batch's memory.
        waited_s: waiting time, summed over the members.
    """

    size: int
    prompt_tokens: int
    output_tokens: int
    reserved_tokens: int
    waited_s: float

    @classmethod
    def of(cls, request: Request, now: float) -> "PlannedBatch":
        """Plan a batch of one request. Each of its `sequences` is a row."""
        return cls(
            request.sequences,
            request.prompt_tokens,
            planned_tokens(request, TIME_LEVEL),
            planned_tokens(request, MEMORY_LEVEL),
            now - request.arrival_s + FRESH_S,
        )

    def joined_by(self, other: "PlannedBatch") -> "PlannedBatch":
        """Return the plan of both batches together."""
        return PlannedBatch(
            self.size + other.size,
            max(self.prompt_tokens, other.prompt_tokens),
            max(self.output_tokens, other.output_tokens),
            max(self.reserved_tokens, other.reserved_tokens),
            self.waited_s + other.waited_s,
        )

    def fits(self, limits: StaticLimits) -> bool:
        """Return whether the rows fit the batch, and the padded prompts and answers fit the memory."""
        rows, capacity = limits.max_batch_size, limits.kv_capacity_tokens
        if rows is not None and self.size > rows:
            return False
        return capacity is None or self.size * (self.prompt_tokens + self.reserved_tokens) <= capacity

    def seconds(self, batch_time: BatchTime) -> float:
        """Return the predicted time of the batch in seconds."""
        return batch_time(self.size, self.prompt_tokens, self.output_tokens)


def planned_tokens(request: Request, level: float) -> int:
    """Return a quantile of the answer's length in whole tokens.

    >>> from gateway.scheduling.length import LengthQuantiles
    >>> length = LengthQuantiles.of((10, 20, 40, 80, 150, 200), cap=180)
    >>> request = Request("a", "m", 5, length, arrival_s=0.0, deadline_s=9.0)
    >>> planned_tokens(request, 0.9), planned_tokens(request, 0.99)
    (150, 180)
    """
    return max(1, round(request.length.quantile(level)))


def form_static_batch(
    head: Request, candidates: Iterable[Request], limits: StaticLimits, now: float, batch_time: BatchTime
) -> list[Request]:
    """Choose the requests that share a batch with the most urgent request.

    Args:
        head: the most urgent request; always a member, alone if need be.
        candidates: requests that may join, the most similar first. They are read only as far as needed.
        limits: exceeded only by a head that is too large alone.
        now: monotonic seconds.
        batch_time: predicts times. Only ratios matter here, so a constant factor in it has no effect.

    Returns:
        The members, the head first.
    """
    members, plan = [head], PlannedBatch.of(head, now)
    seconds = plan.seconds(batch_time)
    rejected = 0
    for candidate in candidates:
        joint = plan.joined_by(PlannedBatch.of(candidate, now))
        joint_s = joint.seconds(batch_time)
        if joint.fits(limits) and joint.waited_s * seconds >= plan.waited_s * joint_s:
            members.append(candidate)
            plan, seconds = joint, joint_s
            continue
        rejected += 1
        if rejected > MAX_REJECTED:
            break
    return members


def form_closed_batch(head: Request, others: Iterable[Request], limits: StaticLimits, now: float) -> list[Request]:
    """Return the members of a batch that no other request may join: the head, and all others that fit with it."""
    members, plan = [head], PlannedBatch.of(head, now)
    for other in others:
        joint = plan.joined_by(PlannedBatch.of(other, now))
        if joint.fits(limits):
            members.append(other)
            plan = joint
    return members


def place_static_batch(first: Place, queue: ModelQueue, bias: LengthBias, now: float) -> list[Place]:
    """Return the places of all members of the first request's batch on its static engine, itself included.

    A batch that ran out of memory comes back in two closed halves. A closed half runs as it is; an engine that is too
    small for all of it gets a part.
    """
    load, head, key = first.load, first.waiting, first.waiting.request.batch_key
    similar = (w for w in queue.similar(head) if w.request.batch_key == key and not load.reason_to_avoid(w))
    offered = {head.request.id: head}
    rows = [limit for limit in (load.state.max_concurrency, load.state.trial_limit) if limit is not None]
    limits = StaticLimits(load.state.kv_capacity_tokens, min(rows, default=None))
    candidates = (offered.setdefault(w.request.id, w).request for w in similar if w is not head)
    if head.closed_batch:
        chosen = form_closed_batch(head.request, candidates, limits, now)
    else:
        # Only ratios of times matter here, so the prior is enough. It is smoother than the learned times, and faster.
        chosen = form_static_batch(head.request, candidates, limits, now, load.batches.time.prior)
    load.batches.begin(chosen, now)
    return [Place.of(offered[request.id], load, bias) for request in chosen]
