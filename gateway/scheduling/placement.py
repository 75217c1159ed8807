"""The decision: whether a backend can take a request, and which backend a request goes to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.demand import LengthBias
from gateway.scheduling.kv_ledger import Curve
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Explanation, WaitReason
from gateway.scheduling.queue import ModelQueue, WaitingRequest

SIMILAR_TIME = 1.25
"""Completion times within this factor of the shortest count as equal: learned speeds are no more exact than that."""


@dataclass(frozen=True, slots=True)
class Place:
    """A backend that takes a request, with the length and the memory forecast that the decision rests on."""

    waiting: WaitingRequest
    load: BackendLoad
    length: LengthQuantiles
    curve: Curve

    @classmethod
    def of(cls, waiting: WaitingRequest, load: BackendLoad, bias: LengthBias) -> "Place":
        """Forecast a request on a backend, with its predicted length corrected by the bias of past predictions."""
        length = bias.correct(waiting.request.length)
        return cls(waiting, load, length, load.ledger.forecast(waiting.request, length))


def decide(waiting: WaitingRequest, load: BackendLoad, bias: LengthBias, now: float) -> Place | WaitReason:
    """Decide whether a backend takes a request: return the place, or the reason against it. Nothing is changed.

    Every dispatch to a continuous engine and every explanation comes from this function.
    """
    if reason := load.quick_reason(waiting, now):
        return reason
    place = Place.of(waiting, load, bias)
    return place if load.has_room(waiting.request, place.curve) else WaitReason.MEMORY


def find_place(waiting: WaitingRequest, loads: Iterable[BackendLoad], bias: LengthBias, now: float) -> Place | None:
    """Choose the backend that takes the request and completes it first; return None if no backend takes it.

    Learned speeds have errors, and requests would pile up where they are too optimistic. So among the backends that are
    nearly as fast as the fastest, the least crowded one is chosen. Dispatches count at once, not with the next scrape.
    """
    candidates = [load for load in loads if load.quick_reason(waiting, now) is None]
    for load in _best_first(candidates, waiting) if len(candidates) > 1 else candidates:
        if isinstance(place := _decide_and_remember(waiting, load, bias, now), Place):
            return place
    return None


def find_followers(first: Place, queue: ModelQueue, bias: LengthBias, now: float) -> Iterator[Place]:
    """Yield requests of similar length that follow the first one to its backend, as long as they fit.

    The caller must admit each before it takes the next.
    """
    for waiting in queue.similar(first.waiting):
        if waiting is first.waiting:
            continue
        place = _decide_and_remember(waiting, first.load, bias, now)
        if isinstance(place, Place):
            yield place
        elif not first.load.reason_to_avoid(waiting):
            return


def explain(
    waiting: WaitingRequest, open_to: list[BackendLoad], loads: Iterable[BackendLoad], bias: LengthBias, now: float
) -> Explanation:
    """Return the reason against every backend that does not take a request.

    Args:
        waiting: the request.
        open_to: backends that no more urgent request waits for.
        loads: all backends.
        bias: corrects the request's predicted length.
        now: monotonic seconds.
    """
    reasons = {}
    for load in loads:
        decision = decide(waiting, load, bias, now)
        if isinstance(decision, WaitReason):
            reasons[load.name] = decision
        elif load not in open_to:
            reasons[load.name] = WaitReason.MORE_URGENT
    request = waiting.request
    return Explanation(request.model, request.id, now - request.arrival_s, reasons)


def _decide_and_remember(
    waiting: WaitingRequest, load: BackendLoad, bias: LengthBias, now: float
) -> Place | WaitReason:
    decision = decide(waiting, load, bias, now)
    if decision is WaitReason.MEMORY:
        load.remember_refusal(waiting.tokens)
    return decision


def _best_first(loads: list[BackendLoad], waiting: WaitingRequest) -> list[BackendLoad]:
    """Sort backends: first those that are nearly as fast as the fastest, by crowding; then the others, by time."""
    request = waiting.request
    times = [(load.completion_s(request, waiting.output_tokens), load) for load in loads]
    # Where the memory of a backend is unknown, requests queue in the engine. No learned step time shows that.
    known = all(load.state.kv_capacity_tokens for load in loads)
    similar_s = SIMILAR_TIME * min(time_s for time_s, _ in times) if known else inf
    ranks = [(max(time_s, similar_s), load.crowding(request), load.name, load) for time_s, load in times]
    return [load for *_, load in sorted(ranks)]
