"""What a scheduler is told, in short."""

from itertools import count

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendObserved, BackendState, QueueLimits, Request, Submit
from gateway.scheduling.policies import Fcfs
from gateway.scheduling.scheduler import Scheduler

_numbers = count()


def submit(id=None, *, prompt=10, output=10, model="llama", at=0.0, timeout_s=60.0, **kept):
    length = LengthQuantiles.of((output,) * 6, cap=output)
    return Submit(Request(id or f"r{next(_numbers)}", model, prompt, length, at, at + timeout_s, **kept))


def seen(name="gpu-0", *, models=("llama",), healthy=True, **known):
    return BackendObserved(BackendState(name, frozenset(models), healthy, **known))


def started(*messages, policy=None, max_requests=100, max_tokens=10**6):
    """A scheduler that was told all this at time zero."""
    scheduler = Scheduler(policy or Fcfs(), QueueLimits(max_requests, max_tokens))
    scheduler.step(messages, 0.0)
    return scheduler
