"""A request that is not scheduled, from the choice of its backend to its last byte.

What is not a generation takes an engine no time worth planning. It goes at once to the backend of its model that has
the fewest requests from us, and as any request to another one while no byte of an answer has reached the client.
"""

from collections.abc import Callable
from contextlib import aclosing

from backends.base import Backend
from gateway.dispatch.client import Client
from gateway.dispatch.retry_budget import RetryBudget
from gateway.dispatch.trip import Trip
from gateway.errors import BackendError, InvalidRequest, NoBackend
from gateway.fleet.breaker import Circuit
from gateway.fleet.entry import BackendEntry
from gateway.fleet.pool import BackendPool
from gateway.upstream.client import Call, Upstream


class PassthroughProxy:
    """Brings calls to the least loaded backends.

    Args:
        pool: the backends.
        upstream: the way there.
        scheduled: counts the generations that a backend of that name has from us.
        monotonic: the clock.
        on_failure: told the backend and the error of every attempt that failed.
        budget: of further attempts.
    """

    def __init__(
        self,
        pool: BackendPool,
        upstream: Upstream,
        *,
        scheduled: Callable[[str], int],
        monotonic: Callable[[], float],
        on_failure: Callable[[str, BackendError], None],
        budget: RetryBudget,
    ) -> None:
        self._pool = pool
        self._upstream = upstream
        self._scheduled = scheduled
        self._monotonic = monotonic
        self._on_failure = on_failure
        self._budget = budget

    async def run(self, model: str | None, call: Call, client: Client, trip: Trip) -> None:
        """Send the call to a backend of the model, and its answer to the client.

        Args:
            model: None where the request names none: then there may be only one.
            call: what is sent.
            client: the one who asked.
            trip: filled in on the way.

        Raises:
            GatewayError: no such model, no backend of it, refused by the engine, or failed.
        """
        model = self._only_model() if model is None else model
        self._pool.require(model)
        self._budget.note_request(trip.arrival_s)
        tried: set[str] = set()
        failure: BackendError | None = None
        while True:
            entry = self._least_loaded(model, tried)
            if entry is None:
                raise failure or NoBackend("No backend that serves the model is reachable now")
            name, sent_s = entry.name, self._monotonic()
            trip.backend, trip.dispatched_s = name, sent_s
            entry.passthrough_requests += 1
            try:
                return await self._attempt(entry.backend, call, client, trip, sent_s)
            except BackendError as error:
                self._on_failure(name, error)
                self._pool.record_failure(name, error, sent_s)
                failure = error
                tried.add(name)
                if client.started or not self._budget.allows(error, trip, self._monotonic()):
                    raise
            finally:
                entry.passthrough_requests -= 1

    def _only_model(self) -> str:
        models = list(self._pool.models())
        if len(models) > 1:
            raise InvalidRequest("model: several are served, so one has to be named", param="model")
        if not models:
            raise NoBackend("No backend is reachable now")
        return models[0]

    def _least_loaded(self, model: str, tried: set[str]) -> BackendEntry | None:
        able = [
            m
            for m in self._pool.entries.values()
            if m.takes_work and model in m.model_names and m.name not in tried and not self._is_tried(m)
        ]
        return min(able, key=lambda m: (self._load(m), m.name), default=None)

    def _is_tried(self, entry: BackendEntry) -> bool:
        """Tell whether it comes back from failures, and has the one request that is to show how it is."""
        return entry.circuit is Circuit.HALF_OPEN and self._load(entry) > 0

    def _load(self, entry: BackendEntry) -> int:
        return self._scheduled(entry.name) + entry.passthrough_requests

    async def _attempt(self, backend: Backend, call: Call, client: Client, trip: Trip, sent_s: float) -> None:
        async with self._upstream.send(backend, call) as reply, aclosing(reply.chunks()) as chunks:
            async for chunk in chunks:
                if not client.started:
                    trip.first_byte_s = self._monotonic()
                    self._pool.record_answer(backend.spec.name, sent_s, complete=False)
                    await client.start(reply.status, reply.content_type, length=reply.length)
                await client.send(chunk, more=True)
            if not client.started:
                await client.start(reply.status, reply.content_type, length=0)
            self._pool.record_answer(backend.spec.name, sent_s, complete=True)
            trip.complete = True
            await client.send(b"", more=False)
