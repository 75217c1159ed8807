"""The engines that the gateway knows, each looked at again and again, never in a request's path."""

import asyncio
import random
import weakref
from collections.abc import Callable, Iterable

from backends.base import Backend, BackendUnreachableError, ModelCard
from gateway.errors import (
    BackendError,
    BackendFull,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ModelNotFound,
    NoBackend,
    ProtocolError,
)
from gateway.fleet.breaker import Breaker, Circuit
from gateway.fleet.entry import FAILURES_TO_UNHEALTHY, BackendEntry
from gateway.scheduling.messages import BackendObserved, BackendRemoved

MAX_INTERVAL_FACTOR = 10
"""A backend that stays away is asked less often, down to one such part."""

TRIAL_WITHIN_S = 5.0
"""Where every backend of a model has failed too often, requests wait if one is tried again as soon as this."""

NOT_IMPLEMENTED = 501
"""A route that an engine does not have: no failure of its health."""


class BackendPool:
    """Scrapes every backend in its own rhythm and tells the scheduler what it saw.

    Args:
        backends: the engines that are there from the start; others come and go by `add`, `replace` and `remove`.
        post: takes a `BackendObserved` after every look and every change, and a `BackendRemoved`.
        monotonic: the clock that the scheduler's times are of.
        interval_s: between two looks at a backend that answers.
        on_scrape_failure: told the name of a backend that did not answer.
        in_flight: counts the scheduled requests that a backend of that name has from us.
        on_circuit: told the name of a backend whose circuit has changed, and to what.
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
        self.members = {backend.spec.name: BackendEntry(backend) for backend in backends}
        self._post = post
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._on_scrape_failure = on_scrape_failure
        self._in_flight = in_flight
        self._on_circuit = on_circuit
        self._look_now = {member: asyncio.Event() for member in self.members.values()}
        self._watches: dict[BackendEntry, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._last_failure: weakref.ref[BackendError] | None = None

    @property
    def ready(self) -> bool:
        """At least one backend can take work."""
        return any(member.takes_work for member in self.members.values())

    def backend(self, name: str) -> Backend:
        """Return the backend of that name.

        Raises:
            BackendUnavailable: it was taken out.
        """
        member = self.members.get(name)
        if member is None:
            raise BackendUnavailable("The backend was taken out")
        return member.backend

    def models(self) -> dict[str, ModelCard]:
        """Return every model that some backend serves or served, by its id; of several cards the first."""
        cards: dict[str, ModelCard] = {}
        for member in self.members.values():
            for card in member.models:
                cards.setdefault(card.id, card)
        return cards

    def require(self, model: str) -> ModelCard:
        """Return the card of a model that can be served now, or that a backend is about to be tried with.

        Raises:
            ModelNotFound: no backend has it, and all are known.
            NoBackend: the backends that have it, or that might, do not answer.
        """
        serving = [m for m in self.members.values() if any(card.id == model for card in m.models)]
        if any(member.takes_work or self._is_tried_soon(member) for member in serving):
            return self.models()[model]
        if serving or any(member.snapshot is None for member in self.members.values()) or not self.members:
            raise NoBackend("No backend that serves the model is reachable now")
        raise ModelNotFound(f"The model {model[:200]!r} does not exist", param="model")

    def add(self, backend: Backend) -> None:
        """Take in a backend; it warms up, where others have its models.

        Raises:
            ValueError: there is one of that name.
        """
        if backend.spec.name in self.members:
            raise ValueError(f"a backend named {backend.spec.name!r} is there already")
        self._enter(BackendEntry(backend))

    async def replace(self, backend: Backend) -> None:
        """Put a backend in the place of the one of its name, which goes on with what it runs.

        Another engine is looked at before it takes over; the same engine in other words goes on as it was.
        """
        old = self.members[backend.spec.name]
        if (old.backend.spec.url, old.backend.spec.kind) == (backend.spec.url, backend.spec.kind):
            old.backend, old.leaving = backend, False
            self._tell(old)
            self._look_now[old].set()
            return
        new = BackendEntry(backend, draining=old.draining)
        await self._scrape(new)
        if self.members.get(backend.spec.name) is old:
            self._take_out(old)
            self._enter(new)
            self._tell(new)

    def drain(self, name: str, draining: bool) -> None:
        """Let a backend end what it runs and take nothing new; or let it take work again."""
        member = self.members[name]
        member.draining = draining
        if not draining:
            member.leaving = False
        self._tell(member)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Drain a backend, then take it out; at once with `force`, and then what it runs goes on unseen."""
        member = self.members[name]
        member.leaving = True
        if force or not self._is_busy(member):
            self._take_out(member)
        else:
            self._tell(member)

    def note_failure(self, name: str, error: BackendError, sent_s: float | None = None) -> None:
        """Take in that a request failed on a backend, and look at it at once where the connection did.

        Args:
            name: the backend's.
            error: how it failed; those that share one call share the error, and it counts once.
            sent_s: when it was sent; now, where that is not known.
        """
        member = self.members.get(name)
        if member is None or (self._last_failure is not None and self._last_failure() is error):
            return
        self._last_failure = weakref.ref(error)
        now = self._monotonic()
        if _is_the_backend_s(error):
            self._change(member, lambda breaker: breaker.failed(now if sent_s is None else sent_s, now))
        if isinstance(error, (BackendUnavailable, BackendTimeout)) or member.circuit is Circuit.OPEN:
            self._look_now[member].set()

    def note_answer(self, name: str, sent_s: float, *, whole: bool) -> None:
        """Take in that a backend answers a request; `whole` when the answer came to its end."""
        if (member := self.members.get(name)) is None:
            return
        now = self._monotonic()
        if member.circuit is Circuit.HALF_OPEN:
            self._change(member, lambda breaker: breaker.answered(sent_s, now))
            self._look_now[member].set()  # its limit changes soon
        if whole:
            member.breaker.succeeded(sent_s, now)

    async def run(self) -> None:
        """Watch all backends; ends by being cancelled."""
        async with asyncio.TaskGroup() as self._group:
            for member in self.members.values():
                self._watches[member] = self._group.create_task(self._watch(member))
            await asyncio.Event().wait()  # for ever, also where there is no backend

    async def look(self, member: BackendEntry) -> None:
        """Ask one backend how it is, and tell the scheduler."""
        await self._scrape(member)
        self._change(member, lambda breaker: breaker.poll(self._monotonic()))
        self._tell(member)

    async def _scrape(self, member: BackendEntry) -> None:
        was_away = member.failures >= FAILURES_TO_UNHEALTHY
        try:
            member.snapshot = await member.backend.scrape()
            member.seen_s = self._monotonic()
            member.failures = 0
        except BackendUnreachableError as error:
            member.failures += 1
            self._on_scrape_failure(member.name, error)
            return
        if was_away:
            member.breaker.begin_ramp(self._monotonic())

    def _change(self, member: BackendEntry, change: Callable[[Breaker], None]) -> None:
        """Change a backend's circuit; who has to know hears of it."""
        before = member.circuit
        change(member.breaker)
        if member.circuit is not before:
            self._on_circuit(member.name, member.circuit)
            self._tell(member)

    def _tell(self, member: BackendEntry) -> None:
        """Tell the scheduler of a backend, unless it was taken out while it was looked at."""
        if self.members.get(member.name) is member:
            self._post(BackendObserved(member.state(self._limit(member))))

    def _limit(self, member: BackendEntry) -> int | None:
        """Most requests at once: one on trial; while it warms up only where others that do not can do the work."""
        if member.circuit is not Circuit.HALF_OPEN:
            warm = [m for m in self.members.values() if m is not member and m.takes_work and not m.breaker.warming_up]
            if member.backend.spec.kind == "static" or not any(m.model_names & member.model_names for m in warm):
                return None
        return member.breaker.limit(self._monotonic())

    def _is_busy(self, member: BackendEntry) -> bool:
        return member.passing > 0 or self._in_flight(member.name) > 0

    def _is_tried_soon(self, member: BackendEntry) -> bool:
        return member.healthy and not member.stops and member.breaker.retry_s <= self._monotonic() + TRIAL_WITHIN_S

    def _enter(self, member: BackendEntry) -> None:
        member.breaker.begin_ramp(self._monotonic())
        self.members[member.name] = member
        self._look_now[member] = asyncio.Event()
        if self._group is not None:
            self._watches[member] = self._group.create_task(self._watch(member))

    def _take_out(self, member: BackendEntry) -> None:
        del self.members[member.name], self._look_now[member]
        self._post(BackendRemoved(member.name))
        if watch := self._watches.pop(member, None):
            watch.cancel()

    async def _watch(self, member: BackendEntry) -> None:
        look_now = self._look_now[member]
        while True:
            look_now.clear()
            await self.look(member)
            if member.leaving and not self._is_busy(member):
                return self._take_out(member)
            try:
                async with asyncio.timeout(self._pause_s(member)):
                    await look_now.wait()
            except TimeoutError:
                continue

    def _pause_s(self, member: BackendEntry) -> float:
        """Time to the next look: the interval, or until its circuit or its limit is to change."""
        factor = min(MAX_INTERVAL_FACTOR, max(1, member.failures)) if not member.leaving else 1
        jitter = random.uniform(0.9, 1.1)
        now = self._monotonic()
        return min(self._interval_s * factor * jitter, max(0.0, member.breaker.next_change_s(now) - now))


def _is_the_backend_s(error: BackendError) -> bool:
    """Tell a failure that shows a sick backend from a full one and from a request that it rightly refuses."""
    if isinstance(error, BackendRefused):
        return error.status >= 500 and error.status != NOT_IMPLEMENTED
    return isinstance(error, BackendUnavailable | BackendTimeout | ProtocolError) and not isinstance(error, BackendFull)
