"""Which backend a request goes to, and who goes with it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.kv_ledger import Curve
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.length_bias import LengthBias
from gateway.scheduling.messages import Request
from gateway.scheduling.queue import ModelQueue, Waiting
from gateway.scheduling.static_batch import PlannedBatch, StaticLimits, form_static_batch

ABOUT_AS_QUICK = 1.25
"""Completion times within this factor of the least count as equal: learned speeds are no better than that."""


@dataclass(frozen=True, slots=True)
class Place:
    """A request on a backend that has room for it, with the forecast that says so."""

    waiting: Waiting
    load: BackendLoad
    length: LengthQuantiles
    curve: Curve


def place(waiting: Waiting, loads: Iterable[BackendLoad], bias: LengthBias, now: float) -> Place | None:
    """Choose a backend with room for the request's peak, among those that will have it done first.

    Learned speeds are a little off, and what is sent where they flatter would pile up there; so of the backends that
    will be nearly as quick as the quickest, the least crowded gets it. What was sent since the last look at a backend
    counts, so a herd of requests spreads by itself.
    """
    request, tokens = waiting.request, waiting.tokens
    open_to = [load for load in loads if load.can_take(request, tokens, now) and load.name not in waiting.failed_on]
    for load in _best_first(open_to, waiting) if len(open_to) > 1 else open_to:
        found = _on(load, waiting, bias)
        if load.has_room(request, tokens, found.curve):
            return found
    return None


def _best_first(loads: list[BackendLoad], waiting: Waiting) -> list[BackendLoad]:
    """Sort backends: those nearly as quick as the quickest by how crowded they are, then the others by their time."""
    request = waiting.request
    offers = [(load.completion_s(request, waiting.output_tokens), load) for load in loads]
    # Where memory is unknown, requests queue in the engine, which no learned step time shows.
    known = all(load.state.kv_capacity_tokens for load in loads)
    nearly = ABOUT_AS_QUICK * min(offer_s for offer_s, _ in offers) if known else inf
    ranks = [(max(offer_s, nearly), load.crowding(request), load.name, load) for offer_s, load in offers]
    return [load for *_, load in sorted(ranks)]


def wave(first: Place, queue: ModelQueue, bias: LengthBias, now: float) -> Iterator[Place]:
    """Yield who follows the first to its backend: others of its length, then of the lengths next to it, while they fit.

    Each must be admitted before the next is asked for.
    """
    load = first.load
    for waiting in queue.alike(first.waiting):
        request, tokens = waiting.request, waiting.tokens
        if waiting is first.waiting or load.name in waiting.failed_on:
            continue
        found = _on(load, waiting, bias)
        if not load.can_take(request, tokens, now) or not load.has_room(request, tokens, found.curve):
            return
        yield found


def static_batch(first: Place, queue: ModelQueue, bias: LengthBias, now: float) -> list[Place]:
    """Return who shares the first one's batch on its static engine, itself included.

    A batch that ran out of memory before comes back in closed halves, and such a half is a batch as it is, as far as
    the engine holds it: a smaller one gets part of it.
    """
    load, own, key = first.load, first.waiting, first.waiting.request.batch_key
    alike = (w for w in queue.alike(own) if w.request.batch_key == key and load.name not in w.failed_on)
    offered = {own.request.id: own}
    rows = [most for most in (load.state.max_concurrency, load.state.trial_limit) if most is not None]
    limits = StaticLimits(load.state.kv_capacity_tokens, min(rows, default=None))
    candidates = (offered.setdefault(w.request.id, w).request for w in alike if w is not own)
    if own.closed_batch:
        chosen = _as_it_is(own.request, candidates, limits, now)
    else:
        # Only ratios of times matter here, so the prior will do: it is smoother than what was learned, and quick.
        chosen = form_static_batch(own.request, candidates, limits, now, load.batches.time.prior)
    members = [offered[request.id] for request in chosen]
    load.batches.begin([w.request for w in members], now)
    return [_on(load, waiting, bias) for waiting in members]


def _as_it_is(head: Request, others: Iterable[Request], limits: StaticLimits, now: float) -> list[Request]:
    """Return a batch's members, the head and then all that fit with it."""
    members, plan = [head], PlannedBatch.of(head, now)
    for other in others:
        joint = plan.joined_by(PlannedBatch.of(other, now))
        if joint.fits(limits):
            members.append(other)
            plan = joint
    return members


def _on(load: BackendLoad, waiting: Waiting, bias: LengthBias) -> Place:
    """Forecast a request on a backend, with the length that predictions have turned out to mean."""
    length = waiting.request.length if bias.factor == 1.0 else waiting.request.length.scaled(bias.factor)
    return Place(waiting, load, length, load.ledger.forecast(waiting.request, length))
