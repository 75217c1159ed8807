"""The scheduling core as a simulation drives it, by name."""

from collections.abc import Iterable
from typing import Protocol

from gateway.scheduling.messages import Action, Message, QueueLimits
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.simulation.direct import DirectScheduler

UNBOUNDED = QueueLimits(max_requests=10**9, max_tokens=10**15)

DIRECT, ROUND_ROBIN = "direct", "round-robin"
QUEUED = ("fcfs", "sjf", "hrrn", "magnus")
NAMES = (DIRECT, ROUND_ROBIN, *QUEUED)


class Core(Protocol):
    """The scheduling core, or what stands in for it."""

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Take what happened and return what is to be done."""
        ...


def build_core(policy: str, alpha: float = 1.0, limits: QueueLimits = UNBOUNDED) -> Core:
    """Return the core with a policy of the gateway's queue, or one of the two ways of having no queue.

    Args:
        policy: one of `NAMES`.
        alpha: exponent of the service time, where the policy has one.
        limits: of the queue.

    Raises:
        ValueError: there is no such policy.
    """
    if policy in {DIRECT, ROUND_ROBIN}:
        return DirectScheduler(round_robin=policy == ROUND_ROBIN)
    return Scheduler(policy_named(policy, alpha), limits)
