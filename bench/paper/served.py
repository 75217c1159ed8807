"""The gateway's own scheduler as one of the compared policies.

`ServedScheduler` only translates: what happens in the testbed becomes a message to the scheduler, and the scheduler's
`Dispatch` actions become batches. Every decision is made by the code that `magnus serve` runs.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from bench.paper.testbed import MODEL, BatchRun, Job, Testbed
from gateway.scheduling.messages import (
    BackendObserved,
    BackendState,
    Dispatch,
    Finished,
    Message,
    OutOfMemory,
    Request,
    Submit,
)
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.simulation.core import UNBOUNDED

POLICY = "hrrn"
"""The gateway's default."""

BATCH_KEY = 0
"""All requests have the same sampling parameters, so any of them may share a call."""


class ServedScheduler:
    """`gateway.scheduling.scheduler.Scheduler` with the testbed's engines as static backends.

    The scheduler knows of each backend that it is static and how much KV memory it has. It is not given the step time:
    it learns how long batches take from those that end.

    Args:
        testbed: the engines.

    Raises:
        RuntimeError: from every method, if the scheduler drops a request. Nothing in the testbed allows that.
    """

    def __init__(self, testbed: Testbed) -> None:
        self._scheduler = Scheduler(policy_named(POLICY), UNBOUNDED)
        self._requests: dict[str, Request] = {}
        self._batches: deque[list[Request]] = deque()
        self._step([BackendObserved(state) for state in _backend_states(testbed)], now=0.0)

    def arrive(self, request: Request) -> None:
        """Submit a request."""
        self._requests[request.id] = request
        self._step([Submit(replace(request, batch_key=BATCH_KEY))], request.arrival_s)

    def take(self, now: float) -> list[Request]:
        """Return the next batch that the scheduler has dispatched; empty if there is none."""
        del now  # the scheduler has decided when the last message came
        return self._batches.popleft() if self._batches else []

    def finish(self, batch: Sequence[Job], run: BatchRun, now: float) -> None:
        """Report every answer of a batch. The scheduler measures the batch's time itself."""
        del run
        for job in batch:
            del self._requests[job.request.id]
        self._step([Finished(job.request.id, job.output_tokens) for job in batch], now)

    def out_of_memory(self, batch: Sequence[Request], now: float) -> None:
        """Report that an engine ran out of memory under a batch."""
        self._step([OutOfMemory(tuple(request.id for request in batch))], now)

    def _step(self, messages: Sequence[Message], now: float) -> None:
        """Step the scheduler and queue the batches that it dispatches. Each action of a batch names all members."""
        dispatched: dict[tuple[str, ...], None] = {}
        for action in self._scheduler.step(messages, now):
            if not isinstance(action, Dispatch):
                raise RuntimeError(f"the scheduler dropped request {action.id}: {action.reason}")
            dispatched[action.batch or (action.id,)] = None
        self._batches += [[self._requests[request_id] for request_id in ids] for ids in dispatched]


def _backend_states(testbed: Testbed) -> list[BackendState]:
    models, kv_tokens = frozenset({MODEL}), testbed.kv_capacity_tokens
    return [
        BackendState(f"v100-{number}", models, healthy=True, kv_capacity_tokens=kv_tokens, static=True)
        for number in range(testbed.engines)
    ]
