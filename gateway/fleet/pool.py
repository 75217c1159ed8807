"""The backends that the gateway sends requests to. Each is scraped at its own pace, never while a request waits."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Literal

from backends.base import Backend, BackendUnreachableError, ModelCard
from gateway.errors import (
    BackendError,
    BackendFull,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    CredentialsRefused,
    ModelNotFound,
    NoBackend,
    ProtocolError,
)
from gateway.fleet.breaker import Breaker, Circuit, Fingerprint
from gateway.fleet.entry import FAILURES_TO_UNHEALTHY, BackendEntry
from gateway.scheduling.messages import BackendObserved, BackendRemoved

_log = logging.getLogger(__name__)

MAX_INTERVAL_FACTOR = 10
"""An unreachable backend is scraped less and less often, down to once in this many intervals."""

TRIAL_WITHIN_S = 5.0
"""If the circuit of every backend of a model is open, requests still wait for a trial that is due within this time."""

NOT_IMPLEMENTED = 501
"""HTTP status of a route that the engine does not have. It does not count as a failure of the engine."""


class BackendPool:
    """Scrapes every backend and reports its state to the scheduler.

    Args:
        backends: the backends at the start; `add`, `replace` and `remove` change them later.
        post: receives a `BackendObserved` after every scrape and every change, and a `BackendRemoved` after a removal.
        monotonic: the clock of all times here.
        interval_s: seconds between two scrapes of a reachable backend.
        on_scrape_failure: called with the backend's name after every failed scrape.
        in_flight: returns the number of scheduled requests that a backend runs, by its name.
        on_circuit: called with the backend's name and the new state whenever a circuit changes.

    Attributes:
        entries: all backends by name.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        post: Callable[[BackendObserved | BackendRemoved], None],
        monotonic: Callable[[], float],
        interval_s: float,
        on_scrape_failure: Callable[[str, BackendUnreachableError], None],
        in_flight: Callable[[str], int] = lambda _: 0,
        on_circuit: Callable[[str, Circuit], None] = lambda *_: None,
    ) -> None:
        self.entries = {backend.spec.name: BackendEntry(backend) for backend in backends}
        self._post = post
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._on_scrape_failure = on_scrape_failure
        self._in_flight = in_flight
        self._on_circuit = on_circuit
        self._scrape_now = {entry: asyncio.Event() for entry in self.entries.values()}
        self._scrapers: dict[BackendEntry, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def ready(self) -> bool:
        """Whether at least one backend takes work."""
        return any(entry.takes_work for entry in self.entries.values())

    def backend(self, name: str) -> Backend:
        """Return the adapter of a backend.

        Raises:
            BackendUnavailable: the backend was removed.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise BackendUnavailable("The backend was removed")
        return entry.backend

    def models(self) -> dict[str, ModelCard]:
        """Return every model of every backend by its id, with the largest known context."""
        cards: dict[str, ModelCard] = {}
        for entry in self.entries.values():
            for card in entry.models:
                known = cards.setdefault(card.id, card)
                if (card.max_model_len or 0) > (known.max_model_len or 0):
                    cards[card.id] = card
        return cards

    def serves_longer(self, model: str, than: str) -> bool:
        """Return whether a backend of a model may have a larger context than the backend of the name `than`."""
        lengths = {e.name: [c.max_model_len for c in e.models if c.id == model] for e in self.entries.values()}
        (limit,) = lengths.pop(than, None) or [None]
        others = [length for found in lengths.values() for length in found]
        return any(length is None or limit is None or length > limit for length in others)

    def serves_now(self, model: str) -> bool:
        """Return whether a backend of the model takes work now, or is about to be tried."""
        return any(
            entry.takes_work or self._is_tried_soon(entry)
            for entry in self.entries.values()
            if model in entry.model_names
        )

    def require(self, model: str) -> ModelCard:
        """Return the card of a model that a backend serves, or served when it was scraped last.

        Raises:
            ModelNotFound: no backend serves the model, and every backend has been scraped.
            NoBackend: all backends of the model drain, or a backend that has not answered yet may serve it.
        """
        serving = [entry for entry in self.entries.values() if model in entry.model_names]
        if any(not entry.is_draining for entry in serving):
            return self.models()[model]
        if serving or any(entry.snapshot is None for entry in self.entries.values()) or not self.entries:
            raise NoBackend("No backend that serves the model is reachable now")
        raise ModelNotFound(f"The model {model[:200]!r} does not exist", param="model")

    def add(self, backend: Backend) -> None:
        """Add a backend. It warms up if other backends serve its models.

        Raises:
            ValueError: the name is in use.
        """
        if backend.spec.name in self.entries:
            raise ValueError(f"the backend name {backend.spec.name!r} is already in use")
        self._insert(BackendEntry(backend))

    async def replace(self, backend: Backend) -> None:
        """Replace the backend of the same name. The requests that the old one runs finish there.

        With the same URL and kind it is the same engine, so only the options change. Another engine is scraped first.
        """
        old = self.entries[backend.spec.name]
        if (old.backend.spec.url, old.backend.spec.kind) == (backend.spec.url, backend.spec.kind):
            if old.backend.spec.api_key != backend.spec.api_key:  # try the new key now
                self._change_circuit(old, lambda breaker: breaker.poll(self._monotonic(), is_last=True))
            old.backend, old.leaving = backend, False
            self._report(old)
            self._scrape_now[old].set()
            return
        new = BackendEntry(backend, draining=old.draining)
        await self._read_snapshot(new)
        if self.entries.get(backend.spec.name) is old:
            self._delete(old)
            self._insert(new)
            self._report(new)

    def drain(self, name: str, draining: bool) -> None:
        """Give a backend no new requests, or give it requests again."""
        entry = self.entries[name]
        entry.draining = draining
        if not draining:
            entry.leaving = False
        self._report(entry)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Drain a backend and remove it when it is idle. With `force`, remove it now; its running requests finish."""
        entry = self.entries[name]
        entry.leaving = True
        if force or not self._is_busy(entry):
            self._delete(entry)
        else:
            self._report(entry)

    def record_failure(
        self, name: str, error: BackendError, sent_s: float, fingerprint: Fingerprint | None = None
    ) -> None:
        """Record that a call to a backend failed. If the connection failed, scrape the backend at once.

        Args:
            name: the backend's name.
            error: the failure. Only a failure of the engine itself counts for its circuit.
            sent_s: when the call was sent, in monotonic seconds.
            fingerprint: of the request. Failures that the engine answered count once per fingerprint.
        """
        entry = self.entries.get(name)
        if entry is None:
            return
        now = self._monotonic()
        if isinstance(error, CredentialsRefused):
            self._note_error(entry, "credentials", f"{error.message}; check api_key")
            self._change_circuit(entry, lambda breaker: breaker.trip(sent_s, now))
        if is_engine_failure(error):
            entry.note_error("request", f"a request failed: {error.code or 'status'} {error.status}", now)
            requester = fingerprint if is_answer(error) else None
            self._change_circuit(entry, lambda breaker: breaker.record_failure(sent_s, now, requester))
        if isinstance(error, (BackendUnavailable, BackendTimeout)) or entry.circuit is Circuit.OPEN:
            self._scrape_now[entry].set()

    def take_back_failures(self, names: Iterable[str], fingerprint: Fingerprint) -> None:
        """Remove a request's failures from the circuits of these backends: it failed alike on all of them."""
        now = self._monotonic()
        for name in names:
            if entry := self.entries.get(name):
                self._change_circuit(entry, lambda breaker: breaker.take_back(fingerprint, now))

    def confirm_failure(self, name: str, fingerprint: Fingerprint, sent_s: float) -> None:
        """Record that another backend has answered a request that this one failed, so that the failure counts fully."""
        if entry := self.entries.get(name):
            now = self._monotonic()
            self._change_circuit(entry, lambda breaker: breaker.confirm_failure(fingerprint, sent_s, now))

    def record_answer(
        self, name: str, sent_s: float, *, complete: bool, fingerprint: Fingerprint | None = None
    ) -> None:
        """Record that a backend has begun to answer a call that was sent at `sent_s`, or has completed the answer."""
        if (entry := self.entries.get(name)) is None:
            return
        now = self._monotonic()
        if entry.circuit is Circuit.HALF_OPEN:
            self._change_circuit(entry, lambda breaker: breaker.record_first_byte(sent_s, now))
            self._scrape_now[entry].set()  # so that the growing limit is reported in time
            if entry.clear_error("credentials"):
                _log.info("Backend %s accepts the gateway's credentials now", name)
                entry.logged_error = ""
        if complete:
            entry.clear_error("request")
            entry.breaker.record_success(sent_s, now, fingerprint)

    async def run(self) -> None:
        """Scrape all backends until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for entry in self.entries.values():
                self._scrapers[entry] = self._group.create_task(self._scrape_forever(entry))
            await asyncio.Event().wait()  # never set: without backends, too, the task runs until it is cancelled

    async def scrape(self, entry: BackendEntry) -> None:
        """Scrape one backend and report its state to the scheduler."""
        await self._read_snapshot(entry)
        self._change_circuit(entry, lambda breaker: breaker.poll(self._monotonic()))
        for each in self.entries.values():  # another backend may be the last one of its models now
            if each.circuit is Circuit.OPEN:
                self._change_circuit(each, lambda _: None)
        self._report(entry)

    async def _read_snapshot(self, entry: BackendEntry) -> None:
        was_unhealthy = entry.failures >= FAILURES_TO_UNHEALTHY
        try:
            entry.snapshot = await entry.backend.scrape()
            entry.scraped_s = self._monotonic()
            entry.failures = 0
        except BackendUnreachableError as error:
            entry.failures += 1
            reason = str(error).removeprefix(f"backend {entry.name!r}: ")
            self._note_error(entry, "scrape", reason, is_certain=not entry.healthy)
            self._on_scrape_failure(entry.name, error)
            return
        if entry.logged_error and entry.clear_error("scrape"):
            _log.info("Backend %s can be scraped again", entry.name)
            entry.logged_error = ""
        if was_unhealthy:
            entry.breaker.begin_ramp(self._monotonic())

    def _note_error(
        self, entry: BackendEntry, source: Literal["scrape", "credentials"], reason: str, *, is_certain: bool = True
    ) -> None:
        """Note a failure, and log it if the backend's condition or the reason is new.

        Args:
            entry: the backend.
            source: what failed.
            reason: without secrets.
            is_certain: the backend gets no work because of it. A single failed scrape may be chance.
        """
        entry.note_error(source, reason, self._monotonic())
        if is_certain and entry.logged_error != reason:
            entry.logged_error = reason
            _log.warning("Backend %s gets no requests (%s): %s", entry.name, entry.backend.spec.url, reason)

    def _change_circuit(self, entry: BackendEntry, change: Callable[[Breaker], None]) -> None:
        """Apply a change to a backend's circuit breaker; report the backend if its circuit is another now.

        The circuit of the last backend of its models does not stay open: it gets one request at a time.
        """
        before = entry.circuit
        change(entry.breaker)
        if entry.circuit is Circuit.OPEN and self._is_last(entry):
            entry.breaker.poll(self._monotonic(), is_last=True)
        if entry.circuit is not before:
            self._on_circuit(entry.name, entry.circuit)
            self._report(entry)

    def _report(self, entry: BackendEntry) -> None:
        """Report a backend to the scheduler, unless it was removed during its scrape."""
        if self.entries.get(entry.name) is entry:
            reserved_from = entry.breaker.reserved_from(self._monotonic())
            self._post(BackendObserved(entry.state(self._trial_limit(entry), reserved_from)))

    def _trial_limit(self, entry: BackendEntry) -> int | None:
        """Return the most concurrent requests: 1 during a trial; a growing number while other backends can help out."""
        if entry.circuit is not Circuit.HALF_OPEN:
            others = (e for e in self.entries.values() if e is not entry and e.takes_work and not e.breaker.warming_up)
            if entry.backend.spec.kind == "static" or not any(e.model_names & entry.model_names for e in others):
                return None
        return entry.breaker.limit(self._monotonic())

    def _is_last(self, entry: BackendEntry) -> bool:
        """Return whether a backend answers its scrapes, and one of its models is served by no other backend."""
        if not entry.healthy or entry.failures or entry.is_draining:
            return False
        elsewhere = {model for e in self.entries.values() if e is not entry and e.takes_work for model in e.model_names}
        return not entry.model_names <= elsewhere

    def _is_busy(self, entry: BackendEntry) -> bool:
        return entry.passthrough_requests > 0 or self._in_flight(entry.name) > 0

    def _is_tried_soon(self, entry: BackendEntry) -> bool:
        trial_due = entry.breaker.retry_s <= self._monotonic() + TRIAL_WITHIN_S
        return entry.healthy and not entry.is_draining and trial_due

    def _insert(self, entry: BackendEntry) -> None:
        entry.breaker.begin_ramp(self._monotonic())
        self.entries[entry.name] = entry
        self._scrape_now[entry] = asyncio.Event()
        if self._group is not None:
            self._scrapers[entry] = self._group.create_task(self._scrape_forever(entry))

    def _delete(self, entry: BackendEntry) -> None:
        del self.entries[entry.name], self._scrape_now[entry]
        self._post(BackendRemoved(entry.name))
        if scraper := self._scrapers.pop(entry, None):
            scraper.cancel()

    async def _scrape_forever(self, entry: BackendEntry) -> None:
        scrape_now = self._scrape_now[entry]
        while True:
            scrape_now.clear()
            await self.scrape(entry)
            if entry.leaving and not self._is_busy(entry):
                return self._delete(entry)
            try:
                async with asyncio.timeout(self._pause_s(entry)):
                    await scrape_now.wait()
            except TimeoutError:
                continue

    def _pause_s(self, entry: BackendEntry) -> float:
        """Return the seconds to the next scrape: the interval, or less if the circuit or its limit changes sooner."""
        factor = min(MAX_INTERVAL_FACTOR, max(1, entry.failures)) if not entry.leaving else 1
        jitter = random.uniform(0.9, 1.1)
        now = self._monotonic()
        return min(self._interval_s * factor * jitter, max(0.0, entry.breaker.next_change_s(now) - now))


def is_engine_failure(error: BackendError) -> bool:
    """Return whether the error shows a broken engine, not a full one and not a request that it rightly refuses."""
    if isinstance(error, BackendRefused):
        return error.status >= 500 and error.status != NOT_IMPLEMENTED
    return isinstance(error, BackendUnavailable | BackendTimeout | ProtocolError) and not isinstance(error, BackendFull)


def is_answer(error: BackendError) -> bool:
    """Return whether the engine answered, so that the request itself may be the reason for the failure."""
    return isinstance(error, BackendRefused | ProtocolError)
