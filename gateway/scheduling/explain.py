"""Why the request whose turn it is still waits: for the operator, not for a decision."""

from dataclasses import dataclass
from enum import StrEnum

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.queue import Waiting


class Why(StrEnum):
    """What keeps a request from a backend."""

    OTHER_MODEL = "serves other models"
    FAILED = "failed this request"
    UNHEALTHY = "does not answer"
    FULL = "said that its queue is full"
    TRIAL = "is on trial or warms up"
    BATCH = "has a batch"
    SEATS = "runs as many as it can"
    MEMORY = "has no memory for its peak"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The request that goes next, and what keeps it from each backend."""

    model: str
    request_id: str
    waited_s: float
    backends: dict[str, Why]


def why_not(waiting: Waiting, load: BackendLoad, now: float) -> Why | None:
    """Return what keeps a request from a backend; None if nothing does."""
    request, state = waiting.request, load.state
    running = len(load.ledger)
    reasons = (
        (Why.OTHER_MODEL, request.model not in state.models),
        (Why.FAILED, load.name in waiting.failed_on),
        (Why.UNHEALTHY, not state.healthy),
        (Why.FULL, load.full_until_s > now),
        (Why.TRIAL, state.trial_limit is not None and running >= state.trial_limit),
        (Why.BATCH, state.static and running > 0),
        (Why.SEATS, 0 < running >= load.seats.most(state.max_concurrency)),
    )
    if reason := next((why for why, holds in reasons if holds), None):
        return reason
    curve = load.ledger.forecast(request, request.length)
    return None if load.fits(request, curve) else Why.MEMORY


def explain(waiting: Waiting, loads: list[BackendLoad], now: float) -> Explanation:
    """Say for each backend why the request is not there; a backend that would take it is left out."""
    reasons = {load.name: why for load in loads if (why := why_not(waiting, load, now))}
    return Explanation(waiting.request.model, waiting.request.id, now - waiting.request.arrival_s, reasons)
