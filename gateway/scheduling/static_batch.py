"""Batches for static engines, formed when an engine is free: who shares one with the request whose turn it is.

A static engine holds every member until the batch's longest answer is there, so a member is paid for in seconds of all
the others. What a batch is worth is the waiting that it ends per second of the engine; a request joins where that does
not make it less. So requests of about one length go together, the more of them the longer they have waited, and one
that has waited long enough may join what it does not suit. Lengths are high quantiles, not points: a batch lasts as
long as its most mistaken prediction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.scheduling.batch_time import BatchTime
from gateway.scheduling.messages import Request

TIME_LEVEL = 0.9
"""The quantile of its answer's length that a request is grouped by, and that a batch's time is planned with."""

MEMORY_LEVEL = 0.99
"""The quantile that has to fit: out of memory, a batch has run for nothing."""

FRESH_S = 1.0
"""Counts as waited from the first moment on, so that fresh requests are worth something too."""

MAX_PASSED_OVER = 256
"""Candidates that do not suit a batch before the search for more ends."""


@dataclass(frozen=True, slots=True)
class StaticLimits:
    """What an engine holds; None is 'not known'."""

    kv_capacity_tokens: int | None = None
    max_batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """A batch's padded shape as planned: `output_tokens` for its time, `reserved_tokens` of output for its memory."""

    size: int
    prompt_tokens: int
    output_tokens: int
    reserved_tokens: int
    waited_s: float
    """Summed over its members."""

    @classmethod
    def of(cls, request: Request, now: float) -> "PlannedBatch":
        """Plan a batch of one; each of the request's `sequences` is a row of it."""
        return cls(
            request.sequences,
            request.prompt_tokens,
            planned_tokens(request, TIME_LEVEL),
            planned_tokens(request, MEMORY_LEVEL),
            now - request.arrival_s + FRESH_S,
        )

    def joined_by(self, other: "PlannedBatch") -> "PlannedBatch":
        """Return the plan of both together."""
        return PlannedBatch(
            self.size + other.size,
            max(self.prompt_tokens, other.prompt_tokens),
            max(self.output_tokens, other.output_tokens),
            max(self.reserved_tokens, other.reserved_tokens),
            self.waited_s + other.waited_s,
        )

    def fits(self, limits: StaticLimits) -> bool:
        """Tell whether padded prompts and answers fit the memory, and the rows the batch."""
        rows, capacity = limits.max_batch_size, limits.kv_capacity_tokens
        if rows is not None and self.size > rows:
            return False
        return capacity is None or self.size * (self.prompt_tokens + self.reserved_tokens) <= capacity

    def seconds(self, batch_time: BatchTime) -> float:
        """Return how long it is planned to take."""
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
    """Choose who shares a batch with the request whose turn it is.

    Args:
        head: always in the batch, alone if need be.
        candidates: who may join, the best suited first: the head's length class in order of arrival, then its
            neighbours. They are read only as far as they are of use.
        limits: never exceeded by more than the head alone.
        now: monotonic seconds.
        batch_time: only ratios of its times matter here, so a step-time model will do that is off by a factor.

    Returns:
        The members, the head first.
    """
    members, plan = [head], PlannedBatch.of(head, now)
    seconds = plan.seconds(batch_time)
    passed_over = 0
    for candidate in candidates:
        alone = PlannedBatch.of(candidate, now)
        joint = plan.joined_by(alone)
        joint_s = joint.seconds(batch_time)
        if joint.fits(limits) and joint.waited_s * seconds >= plan.waited_s * joint_s:
            members.append(candidate)
            plan, seconds = joint, joint_s
            continue
        passed_over += 1
        if passed_over > MAX_PASSED_OVER:
            break
    return members


def split(batch: Sequence[Request]) -> tuple[list[Request], list[Request]]:
    """Halve a batch that ran out of memory, the shorter answers first; neither half takes anybody in any more.

    Raises:
        ValueError: a single request cannot be halved.
    """
    if len(batch) < 2:
        raise ValueError("a batch of one cannot be split")
    by_length = sorted(batch, key=lambda request: request.length.quantile(TIME_LEVEL))
    return by_length[: len(batch) // 2], by_length[len(batch) // 2 :]
