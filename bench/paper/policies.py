"""Who shares a batch and which batch is next: what each row of the paper's comparison decides, and what ours does."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bench.paper.testbed import BatchRun, Job
from bench.paper.wma import BatchShape
from gateway.scheduling.batch_time import KnnBatchTime
from gateway.scheduling.messages import Request
from gateway.scheduling.static_batch import planned_tokens

PHI = 50_000
"""The paper's threshold of wasted memory access, in token reads."""


class BatchPolicy(Protocol):
    """Decides for static engines."""

    def arrive(self, request: Request) -> None:
        """Take a request in."""
        ...

    def take(self, now: float) -> list[Request]:
        """Give the next batch to an engine that is free; an empty one if nobody waits."""
        ...

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Learn from a batch that ended: how long its answers and the batch itself turned out."""
        ...

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Take back a batch that ran out of memory."""
        ...


@dataclass(slots=True)
class Vanilla:
    """VS and VSQ: first come, first served, in batches of a fixed size that fits whatever the lengths are."""

    size: int
    _queue: deque[Request] = field(default_factory=deque)

    def arrive(self, request: Request) -> None:
        """Queue it."""
        self._queue.append(request)

    def take(self, now: float) -> list[Request]:
        """Take the first ones; a free engine does not wait until there are enough."""
        del now
        return [self._queue.popleft() for _ in range(min(self.size, len(self._queue)))]

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Learn nothing."""

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Fail: the size is chosen so that this cannot be."""
        raise RuntimeError(f"{len(batch)} requests of the largest size do not fit the memory")


@dataclass(frozen=True, slots=True)
class _Point:
    """A request as the paper sees it: with one predicted length. `reserved_tokens` is what the memory test counts."""

    request: Request
    output_tokens: int
    reserved_tokens: int


@dataclass(slots=True)
class _QueuedBatch:
    """A batch that waits; `closed` to arrivals if it is half of one that ran out of memory."""

    members: list[_Point]
    shape: BatchShape
    reserved_tokens: int
    arrival_s: float
    closed: bool = False

    @classmethod
    def of(cls, members: Sequence[_Point], *, closed: bool = False) -> "_QueuedBatch":
        first, *others = members
        shape = BatchShape.of(first.request.prompt_tokens, first.output_tokens)
        for one in others:
            shape = shape.joined_by(one.request.prompt_tokens, one.output_tokens)
        reserved = max(one.reserved_tokens for one in members)
        return cls(list(members), shape, reserved, min(one.request.arrival_s for one in members), closed)


@dataclass(slots=True)
class WmaBatches:
    """The paper's batches, formed as requests arrive, from points: the mean of each predicted length.

    An arrival joins the queued batch whose WMA is the smallest with it, if that is under Φ and the batch fits the
    memory; else it opens one. With a fixed `size` this is GLP, without one ABP, both first come, first served; with
    HRRN over batches, by the estimator, it is Magnus.

    Args:
        kv_capacity_tokens: of an engine.
        batch_time: the estimator for HRRN; None serves the batches in the order in which they were opened.
        size: most members; None leaves it to the memory test.
        memory_level: quantile of the length that the memory test counts with, in place of the mean; not in the paper.
    """

    kv_capacity_tokens: int
    batch_time: KnnBatchTime | None = None
    size: int | None = None
    memory_level: float | None = None
    _queue: list[_QueuedBatch] = field(default_factory=list)

    def arrive(self, request: Request) -> None:
        """Insert by WMA."""
        point = self._point(request)
        best: tuple[int, _QueuedBatch, BatchShape] | None = None
        for batch in self._queue:
            if batch.closed or (self.size is not None and batch.shape.size >= self.size):
                continue
            shape = batch.shape.joined_by(request.prompt_tokens, point.output_tokens)
            wma = shape.wma
            if wma < PHI and (best is None or wma < best[0]) and self._fits(shape, batch, point):
                best = wma, batch, shape
        if best is None:
            self._queue.append(_QueuedBatch.of([point]))
            return
        _, batch, batch.shape = best
        batch.members.append(point)
        batch.reserved_tokens = max(batch.reserved_tokens, point.reserved_tokens)

    def take(self, now: float) -> list[Request]:
        """Take the batch with the highest response ratio, or the oldest."""
        if not self._queue:
            return []
        best = max(self._queue, key=lambda batch: self._urgency(batch, now))
        self._queue.remove(best)
        return [point.request for point in best.members]

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Teach the estimator the batch's time."""
        del now
        if self.batch_time is not None:
            prompt_tokens = max(job.request.prompt_tokens for job in batch)
            self.batch_time.learn_one(len(batch), prompt_tokens, run.steps, run.seconds)

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Queue both halves, closed."""
        points, half = [self._point(request) for request in batch], len(batch) // 2
        self._queue += [_QueuedBatch.of(points[:half], closed=True), _QueuedBatch.of(points[half:], closed=True)]

    def _point(self, request: Request) -> _Point:
        expected = max(1, round(request.length.mean()))
        level = self.memory_level
        return _Point(request, expected, expected if level is None else planned_tokens(request, level))

    def _fits(self, shape: BatchShape, batch: _QueuedBatch, point: _Point) -> bool:
        reserved = max(batch.reserved_tokens, point.reserved_tokens)
        return shape.size * (shape.prompt_tokens + reserved) <= self.kv_capacity_tokens

    def _urgency(self, batch: _QueuedBatch, now: float) -> float:
        if self.batch_time is None:
            return -batch.arrival_s
        seconds = self.batch_time(batch.shape.size, batch.shape.prompt_tokens, batch.shape.output_tokens)
        return (now - batch.arrival_s + seconds) / seconds
