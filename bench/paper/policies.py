"""The paper's batch policies: which requests share a batch, and which batch runs next."""

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
"""The paper's threshold for wasted memory access, in token reads."""


class BatchPolicy(Protocol):
    """Forms batches for static engines."""

    def arrive(self, request: Request) -> None:
        """Accept a request that has just arrived."""
        ...

    def take(self, now: float) -> list[Request]:
        """Return the next batch for an engine that is free; empty if no request waits."""
        ...

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Learn from a batch that ended: how long its answers and the batch itself turned out."""
        ...

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Take back a batch that ran out of memory."""
        ...


@dataclass(slots=True)
class Vanilla:
    """VS and VSQ: first come, first served, in batches of a fixed size that fits for all lengths."""

    size: int
    _queue: deque[Request] = field(default_factory=deque)

    def arrive(self, request: Request) -> None:
        """Queue the request."""
        self._queue.append(request)

    def take(self, now: float) -> list[Request]:
        """Take the oldest requests. A free engine does not wait for a full batch."""
        del now
        return [self._queue.popleft() for _ in range(min(self.size, len(self._queue)))]

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Learn nothing."""

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Raise an error: the batch size is chosen so that this cannot happen."""
        raise RuntimeError(f"{len(batch)} requests of the largest size do not fit the memory")


@dataclass(frozen=True, slots=True)
class _Member:
    """A request with one predicted length, as in the paper. The memory test counts `reserved_tokens` of output."""

    request: Request
    output_tokens: int
    reserved_tokens: int


@dataclass(slots=True)
class _QueuedBatch:
    """A batch in the queue. It is `closed` to arrivals if it is half of a batch that ran out of memory."""

    members: list[_Member]
    shape: BatchShape
    reserved_tokens: int
    arrival_s: float
    closed: bool = False

    @classmethod
    def of(cls, members: Sequence[_Member], *, closed: bool = False) -> "_QueuedBatch":
        first, *others = members
        shape = BatchShape.of(first.request.prompt_tokens, first.output_tokens)
        for one in others:
            shape = shape.joined_by(one.request.prompt_tokens, one.output_tokens)
        reserved = max(one.reserved_tokens for one in members)
        return cls(list(members), shape, reserved, min(one.request.arrival_s for one in members), closed)


@dataclass(slots=True)
class WmaBatches:
    """The paper's batches, formed as requests arrive, with the mean of each predicted length.

    An arrival joins the queued batch that has the smallest wasted memory access (WMA) with it, if that is below Φ and
    the batch fits the memory. Otherwise the arrival opens a batch. With a fixed `size` this is GLP, and without one it
    is ABP. Both serve batches first come, first served. With HRRN over batches it is Magnus.

    Args:
        kv_capacity_tokens: KV memory of an engine.
        batch_time: estimator for HRRN; None serves batches in the order in which they were opened.
        size: most requests in a batch; None leaves it to the memory test.
        memory_level: quantile of the length for the memory test; None uses the mean, as in the paper.
    """

    kv_capacity_tokens: int
    batch_time: KnnBatchTime | None = None
    size: int | None = None
    memory_level: float | None = None
    _queue: list[_QueuedBatch] = field(default_factory=list)

    def arrive(self, request: Request) -> None:
        """Add the request to the batch with the smallest WMA, or open a batch."""
        member = self._member(request)
        best: tuple[int, _QueuedBatch, BatchShape] | None = None
        for batch in self._queue:
            if batch.closed or (self.size is not None and batch.shape.size >= self.size):
                continue
            shape = batch.shape.joined_by(request.prompt_tokens, member.output_tokens)
            wma = shape.wma
            if wma < PHI and (best is None or wma < best[0]) and self._fits(shape, batch, member):
                best = wma, batch, shape
        if best is None:
            self._queue.append(_QueuedBatch.of([member]))
            return
        _, batch, batch.shape = best
        batch.members.append(member)
        batch.reserved_tokens = max(batch.reserved_tokens, member.reserved_tokens)

    def take(self, now: float) -> list[Request]:
        """Take the batch with the highest response ratio, or the oldest one without an estimator."""
        if not self._queue:
            return []
        best = max(self._queue, key=lambda batch: self._urgency(batch, now))
        self._queue.remove(best)
        return [member.request for member in best.members]

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Let the estimator learn the batch's time."""
        del now
        if self.batch_time is not None:
            prompt_tokens = max(job.request.prompt_tokens for job in batch)
            self.batch_time.learn_one(len(batch), prompt_tokens, run.steps, run.seconds)

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Queue the batch as two halves that no other request joins."""
        members, half = [self._member(request) for request in batch], len(batch) // 2
        self._queue += [_QueuedBatch.of(members[:half], closed=True), _QueuedBatch.of(members[half:], closed=True)]

    def _member(self, request: Request) -> _Member:
        expected = max(1, round(request.length.mean()))
        level = self.memory_level
        return _Member(request, expected, expected if level is None else planned_tokens(request, level))

    def _fits(self, shape: BatchShape, batch: _QueuedBatch, member: _Member) -> bool:
        reserved = max(batch.reserved_tokens, member.reserved_tokens)
        return shape.size * (shape.prompt_tokens + reserved) <= self.kv_capacity_tokens

    def _urgency(self, batch: _QueuedBatch, now: float) -> float:
        if self.batch_time is None:
            return -batch.arrival_s
        seconds = self.batch_time(batch.shape.size, batch.shape.prompt_tokens, batch.shape.output_tokens)
        return (now - batch.arrival_s + seconds) / seconds
