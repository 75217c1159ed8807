"""Which backend a request goes to, and who goes with it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.kv_ledger import Curve
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.length_bias import LengthBias
from gateway.scheduling.queue import ModelQueue, Waiting
from gateway.scheduling.static_batch import StaticLimits, form_static_batch


@dataclass(frozen=True, slots=True)
class Place:
    """A request on a backend that has room for it, with the forecast that says so."""

    waiting: Waiting
    load: BackendLoad
    length: LengthQuantiles
    curve: Curve


def place(waiting: Waiting, loads: Iterable[BackendLoad], bias: LengthBias, now: float) -> Place | None:
    """Choose the backend that will have the request done first, of those with room for its peak.

    What was sent since the last look at a backend counts, so a herd of requests spreads by itself. A prefix that a
    backend has cached saves it that prefill, which a longer queue of running requests can outweigh. Where the memory of
    any is unknown, requests may queue in the engines, which no step time shows: then the one with the fewest is chosen.
    """
    request, tokens = waiting.request, waiting.tokens
    open_to = [load for load in loads if load.can_take(request, tokens, now) and load.name not in waiting.failed_on]
    if len(open_to) > 1:
        known = all(load.state.kv_capacity_tokens for load in open_to)
        offers = [
            (0 if known else len(load.ledger), load.completion_s(request, waiting.output_tokens), load.name, load)
            for load in open_to
        ]
        open_to = [offer[-1] for offer in sorted(offers)]
    for load in open_to:
        found = _on(load, waiting, bias)
        if load.has_room(request, tokens, found.curve):
            return found
    return None


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

    A batch that ran out of memory before comes back in closed halves, and such a half is a batch as it is.
    """
    load, own = first.load, first.waiting
    alike = [
        w for w in queue.alike(own) if w.request.batch_key == own.request.batch_key and load.name not in w.failed_on
    ]
    members = alike
    if not own.closed_batch:
        limits = StaticLimits(load.state.kv_capacity_tokens, load.state.max_concurrency)
        others = (w.request for w in alike if w is not own)
        chosen = {r.id for r in form_static_batch(own.request, others, limits, now, load.batches.time)}
        members = [w for w in alike if w.request.id in chosen]
    load.batches.begin([w.request for w in members], now)
    return [_on(load, waiting, bias) for waiting in members]


def _on(load: BackendLoad, waiting: Waiting, bias: LengthBias) -> Place:
    """Forecast a request on a backend, with the length that predictions have turned out to mean."""
    length = waiting.request.length if bias.factor == 1.0 else waiting.request.length.scaled(bias.factor)
    return Place(waiting, load, length, load.ledger.forecast(waiting.request, length))
