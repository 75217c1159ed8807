"""Policies: the order in which waiting requests are dispatched.

A policy sorts requests into lanes by predicted service time. Each lane is first come, first served, and the policy says
which lane's head goes next. Within a lane of similar service times, the order of arrival is the order of response
ratios. So a decision compares some forty heads and never reads the whole queue.

Source: Brinch Hansen, Short-term scheduling in multiprogramming systems (SOSP 1971), for HRRN. The exponent is ours.
"""

from dataclasses import dataclass
from math import floor, log, log2
from typing import Protocol

CLASS_RATIO = 2.0**0.5
"""Longest over shortest service time within one length class."""

_LOG_CLASS_RATIO = log(CLASS_RATIO)
_MIN_SERVICE_S = 1e-6


class Policy(Protocol):
    """An order of queue heads."""

    @property
    def name(self) -> str:
        """The name in the settings."""
        ...

    @property
    def homogeneous(self) -> bool:
        """Whether a backend that takes a request is filled with requests of similar length first."""
        ...

    def lane(self, service_s: float) -> int:
        """Return the lane of a request by its predicted service time in seconds."""
        ...

    def urgency(self, arrival_s: float, service_s: float, now: float) -> float:
        """Return how urgent a head is. The head with the highest value goes next."""
        ...


@dataclass(frozen=True, slots=True)
class Fcfs:
    """First come, first served."""

    name: str = "fcfs"
    homogeneous: bool = False

    def lane(self, service_s: float) -> int:
        """Return 0: all requests share one lane."""
        del service_s
        return 0

    def urgency(self, arrival_s: float, service_s: float, now: float) -> float:
        """Return the waiting time in seconds."""
        del service_s
        return now - arrival_s


@dataclass(frozen=True, slots=True)
class Sjf:
    """Shortest job first: the lowest mean response time, but long requests may wait without bound."""

    name: str = "sjf"
    homogeneous: bool = False

    def lane(self, service_s: float) -> int:
        """Return the length class."""
        return length_class(service_s)

    def urgency(self, arrival_s: float, service_s: float, now: float) -> float:
        """Return the negative service time."""
        del arrival_s, now
        return -service_s


@dataclass(frozen=True, slots=True)
class Hrrn:
    """Highest response ratio next: (wait + service) / service ** alpha.

    With `alpha` near 0 the order is first come, first served; with 1 it is HRRN; above 1 it moves towards shortest job
    first. A request's ratio grows without bound while it waits, and the queue is bounded, so no request starves.
    """

    alpha: float = 1.0
    homogeneous: bool = False
    name: str = "hrrn"

    def lane(self, service_s: float) -> int:
        """Return the length class."""
        return length_class(service_s)

    def urgency(self, arrival_s: float, service_s: float, now: float) -> float:
        """Return the response ratio.

        >>> Hrrn().urgency(arrival_s=0.0, service_s=2.0, now=6.0)
        4.0
        >>> Hrrn(alpha=0.5).urgency(arrival_s=0.0, service_s=4.0, now=6.0)
        5.0
        """
        return float((now - arrival_s + service_s) / service_s**self.alpha)


def length_class(service_s: float) -> int:
    """Return the length class of a service time. Times of one class are at least `CLASS_RATIO` times the class below.

    >>> length_class(1.0), length_class(1.4), length_class(1.5), length_class(0.99)
    (0, 0, 1, -1)
    """
    return floor(log(max(_MIN_SERVICE_S, service_s)) / _LOG_CLASS_RATIO)


def response_rank(arrival_s: float, service_s: float, now: float) -> int:
    """Return a rank by response ratio: lower for a higher ratio, with eight ranks for each doubling of it.

    >>> response_rank(arrival_s=0.0, service_s=1.0, now=0.0), response_rank(arrival_s=0.0, service_s=1.0, now=3.0)
    (0, -16)
    """
    return -round(8.0 * log2(1.0 + max(0.0, now - arrival_s) / max(_MIN_SERVICE_S, service_s)))


def policy_named(name: str, alpha: float = 1.0) -> Policy:
    """Return the policy with this name in the settings. `magnus` is HRRN that fills a backend with similar requests.

    Raises:
        ValueError: no policy has this name, or `alpha` is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha} is not above 0")
    policies: dict[str, Policy] = {
        "fcfs": Fcfs(),
        "sjf": Sjf(),
        "hrrn": Hrrn(alpha),
        "magnus": Hrrn(alpha, homogeneous=True, name="magnus"),
    }
    if name not in policies:
        raise ValueError(f"policy: {name!r} is none of {', '.join(policies)}")
    return policies[name]
