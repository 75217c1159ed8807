"""Sends a request that is not a generation to an engine, without scheduling it.

Such a request takes an engine little time. The gateway sends it at once to the backend of its model that runs the
fewest of the gateway's requests. While no byte has reached the client, a failed request goes to another backend.
"""

from collections.abc import Callable
from contextlib import aclosing

from backends.base import Backend
from gateway.dispatch.context import Client, RequestContext
from gateway.dispatch.retry_budget import RetryBudget, Suspect
from gateway.errors import BackendError, InvalidRequest, NoBackend
from gateway.fleet.breaker import Circuit, Fingerprint
from gateway.fleet.entry import BackendEntry
from gateway.fleet.pool import BackendPool
from gateway.upstream.client import UpstreamClient, UpstreamRequest


class PassthroughProxy:
    """Sends requests to the least loaded backends.

    Args:
        pool: the backends and their health.
        upstream: sends requests to engines.
        scheduled: returns how many generations of the gateway run on the backend of that name.
        monotonic: returns the time in seconds.
        on_failure: called with the backend's name and the error of every attempt that failed.
        budget: limits retries.
    """

    def __init__(
        self,
        pool: BackendPool,
        upstream: UpstreamClient,
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

    async def run(
        self, context: RequestContext, model: str | None, upstream_request: UpstreamRequest, client: Client
    ) -> None:
        """Send the request to a backend of the model, and the answer to the client.

        Args:
            context: of the request; filled in as the request proceeds, also if it fails.
            model: None if the request names no model; then the backends must serve only one.
            upstream_request: for the engine.
            client: gets the answer.

        Raises:
            GatewayError: the model does not exist, no backend serves it now, the engine refused the request, or it
                failed.
        """
        model = only_model(self._pool) if model is None else model
        self._pool.require(model)
        self._budget.note_request(context.arrival_s)
        tried: set[str] = set()
        suspect = Suspect(context.fingerprint)
        failure: BackendError | None = None
        while True:
            entry = self._least_loaded(model, tried, context.fingerprint)
            if entry is None:
                raise failure or NoBackend("No backend that serves the model is reachable now")
            name, sent_s = entry.name, self._monotonic()
            context.backend, context.dispatched_s = name, sent_s
            entry.passthrough_requests += 1
            try:
                await self._attempt(entry.backend, upstream_request, client, context, sent_s)
                return suspect.note_success(self._monotonic(), self._pool)
            except BackendError as error:
                self._on_failure(name, error)
                self._pool.record_failure(name, error, sent_s, context.fingerprint)
                suspect.note(name, error, self._pool)
                failure = error
                tried.add(name)
                if client.started or not self._budget.allows(error, context, self._monotonic()):
                    raise
            finally:
                entry.passthrough_requests -= 1

    def _least_loaded(self, model: str, tried: set[str], fingerprint: Fingerprint | None) -> BackendEntry | None:
        now = self._monotonic()
        candidates = [
            entry
            for entry in self._pool.entries.values()
            if entry.takes_work
            and model in entry.model_names
            and entry.name not in tried
            and not self._has_trial_request(entry)
            and fingerprint not in entry.breaker.reserved_from(now)
        ]
        return min(candidates, key=lambda entry: (self._load(entry), entry.name), default=None)

    def _has_trial_request(self, entry: BackendEntry) -> bool:
        """Return whether the backend recovers from failures and already has its one trial request."""
        return entry.circuit is Circuit.HALF_OPEN and self._load(entry) > 0

    def _load(self, entry: BackendEntry) -> int:
        return self._scheduled(entry.name) + entry.passthrough_requests

    async def _attempt(
        self, backend: Backend, request: UpstreamRequest, client: Client, context: RequestContext, sent_s: float
    ) -> None:
        name = backend.spec.name
        async with self._upstream.send(backend, request) as response, aclosing(response.chunks()) as chunks:
            async for chunk in chunks:
                if not client.started:
                    context.first_byte_s = self._monotonic()
                    self._pool.record_answer(name, sent_s, complete=False)
                    context.passed_headers = response.passed_headers
                    await client.start(response.status, response.content_type, length=response.length)
                await client.send(chunk, more=True)
            if not client.started:
                context.passed_headers = response.passed_headers
                await client.start(response.status, response.content_type, length=0)
            self._pool.record_answer(name, sent_s, complete=True, fingerprint=context.fingerprint)
            context.complete = True
            await client.send(b"", more=False)


def only_model(pool: BackendPool) -> str:
    """Return the model of a request that names none.

    Raises:
        InvalidRequest: the backends serve several models.
        NoBackend: no backend is known.
    """
    models = list(pool.models())
    if len(models) > 1:
        raise InvalidRequest(
            "model: missing; the backends serve several models, so the request must name one", param="model"
        )
    if not models:
        raise NoBackend("No backend is reachable now")
    return models[0]
