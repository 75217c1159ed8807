"""Builds what a simulation drives: the gateway's scheduler, or a baseline that has no queue."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from gateway.scheduling.messages import Action, BackendObserved, Dispatch, Finished, Message, QueueLimits, Submit
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler

UNBOUNDED = QueueLimits(max_requests=10**9, max_tokens=10**15)

DIRECT, ROUND_ROBIN = "direct", "round-robin"
QUEUED = ("fcfs", "sjf", "hrrn", "magnus")
NAMES = (DIRECT, ROUND_ROBIN, *QUEUED)


class Core(Protocol):
    """A scheduler: messages go in, actions come out."""

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Process the messages and return the actions to carry out, as `Scheduler.step` does."""
        ...


@dataclass(slots=True)
class DirectScheduler:
    """A baseline without a queue. It sends each request to an engine as soon as the request arrives.

    Attributes:
        round_robin: send to each backend in turn; otherwise to the backend with the fewest requests in flight.
    """

    round_robin: bool = False
    _in_flight: dict[str, int] = field(default_factory=dict)
    _sent_to: dict[str, str] = field(default_factory=dict)
    _turn: "count[int]" = field(default_factory=count)

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Process the messages and return a dispatch for each request that arrived."""
        del now  # no request ever waits
        actions: list[Action] = []
        for message in messages:
            match message:
                case BackendObserved(state):
                    self._in_flight.setdefault(state.name, 0)
                case Finished(request_id):
                    self._in_flight[self._sent_to.pop(request_id)] -= 1
                case Submit(request):
                    name = self._sent_to[request.id] = self._next()
                    self._in_flight[name] += 1
                    actions.append(Dispatch(request.id, name))
                case _:
                    continue
        return actions

    def _next(self) -> str:
        if self.round_robin:
            names = list(self._in_flight)
            return names[next(self._turn) % len(names)]
        return min(self._in_flight, key=lambda name: (self._in_flight[name], name))


def build_core(policy: str, alpha: float = 1.0, limits: QueueLimits = UNBOUNDED) -> Core:
    """Return the gateway's scheduler with one of its policies, or a baseline that has no queue.

    Args:
        policy: one of `NAMES`.
        alpha: exponent of the service time, for policies that have one.
        limits: bounds of the queue.

    Raises:
        ValueError: the policy is unknown.
    """
    if policy in {DIRECT, ROUND_ROBIN}:
        return DirectScheduler(round_robin=policy == ROUND_ROBIN)
    return Scheduler(policy_named(policy, alpha), limits)
