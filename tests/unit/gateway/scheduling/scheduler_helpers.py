"""Helpers that create messages and schedulers."""

from itertools import count

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendObserved, BackendState, QueueLimits, Request, Submit
from gateway.scheduling.policies import Fcfs
from gateway.scheduling.scheduler import Scheduler

_numbers = count()


def submit(id=None, *, prompt=10, output=10, model="llama", at=0.0, timeout_s=60.0, **other_fields):
    length = LengthQuantiles.of((output,) * 6, cap=output)
    return Submit(Request(id or f"r{next(_numbers)}", model, prompt, length, at, at + timeout_s, **other_fields))


def observed(name="gpu-0", *, models=("llama",), healthy=True, **state):
    return BackendObserved(BackendState(name, frozenset(models), healthy, **state))


def start(*messages, policy=None, max_requests=100, max_tokens=10**6):
    """Return a scheduler that has taken these messages at time zero."""
    scheduler = Scheduler(policy or Fcfs(), QueueLimits(max_requests, max_tokens))
    scheduler.step(messages, 0.0)
    return scheduler
