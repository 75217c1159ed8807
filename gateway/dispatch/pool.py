"""The engines that the gateway knows, each looked at again and again, never in a request's path."""

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from backends.base import Backend, BackendUnreachableError, ModelCard, Snapshot
from gateway.errors import BackendError, BackendTimeout, BackendUnavailable, ModelNotFound, NoBackend
from gateway.scheduling.messages import BackendSeen, BackendState

FAILURES_TO_UNHEALTHY = 2
"""Scrapes that may fail in a row before a backend gets no more work: one may be slow for a moment."""

MAX_INTERVAL_FACTOR = 10
"""A backend that stays away is asked less often, down to one such part."""


@dataclass(slots=True)
class Member:
    """One engine and what is known of it; `seen_s` is when it last answered a look."""

    backend: Backend
    snapshot: Snapshot | None = None
    seen_s: float | None = None
    failures: int = 0

    @property
    def name(self) -> str:
        """As configured."""
        return self.backend.spec.name

    @property
    def healthy(self) -> bool:
        """It has answered, and lately."""
        return self.snapshot is not None and self.failures < FAILURES_TO_UNHEALTHY

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """Models that it serves, as last told."""
        return self.snapshot.models if self.snapshot else ()

    def state(self) -> BackendState:
        """What the scheduler needs to know."""
        snapshot, spec = self.snapshot, self.backend.spec
        lengths = [card.max_model_len for card in self.models if card.max_model_len is not None]
        return BackendState(
            name=self.name,
            models=frozenset(card.id for card in self.models),
            healthy=self.healthy,
            kv_capacity_tokens=snapshot.kv_capacity_tokens if snapshot else None,
            kv_used_tokens=snapshot.kv_used_tokens if snapshot else None,
            kv_block_tokens=snapshot.kv_block_tokens if snapshot else 1,
            max_concurrency=spec.max_concurrency,
            max_model_len=min(lengths, default=None),
            running=snapshot.running if snapshot else None,
            waiting=snapshot.waiting if snapshot else None,
            preemptions=snapshot.preemptions if snapshot else None,
            static=spec.kind == "static",
            reserving=spec.kind == "tgi",
            seen_s=self.seen_s,
        )


class Pool:
    """Scrapes every backend in its own rhythm and tells the scheduler what it saw.

    Args:
        backends: the engines.
        post: takes a `BackendSeen` after every look.
        monotonic: the clock that the scheduler's times are of.
        interval_s: between two looks at a backend that answers.
        on_scrape_failure: told the name of a backend that did not answer.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        *,
        post: Callable[[BackendSeen], None],
        monotonic: Callable[[], float],
        interval_s: float,
        on_scrape_failure: Callable[[str, BackendUnreachableError], None],
    ) -> None:
        self.members = {backend.spec.name: Member(backend) for backend in backends}
        self._post = post
        self._monotonic = monotonic
        self._interval_s = interval_s
        self._on_scrape_failure = on_scrape_failure
        self._look_now = {name: asyncio.Event() for name in self.members}

    @property
    def ready(self) -> bool:
        """At least one backend can take work."""
        return any(member.healthy for member in self.members.values())

    def backend(self, name: str) -> Backend:
        """Return the backend of that name."""
        return self.members[name].backend

    def models(self) -> dict[str, ModelCard]:
        """Return every model that some backend serves or served, by its id; of several cards the first."""
        cards: dict[str, ModelCard] = {}
        for member in self.members.values():
            for card in member.models:
                cards.setdefault(card.id, card)
        return cards

    def require(self, model: str) -> ModelCard:
        """Return the card of a model that can be served now.

        Raises:
            ModelNotFound: no backend has it, and all are known.
            NoBackend: the backends that have it, or that might, do not answer.
        """
        serving = [m for m in self.members.values() if any(card.id == model for card in m.models)]
        if any(member.healthy for member in serving):
            return self.models()[model]
        if serving or any(member.snapshot is None for member in self.members.values()) or not self.members:
            raise NoBackend("No backend that serves the model is reachable now")
        raise ModelNotFound(f"The model {model[:200]!r} does not exist", param="model")

    def note_failure(self, name: str, error: BackendError) -> None:
        """Look at a backend at once on which a request failed."""
        if isinstance(error, (BackendUnavailable, BackendTimeout)) and name in self._look_now:
            self._look_now[name].set()

    async def run(self) -> None:
        """Watch all backends; ends by being cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self.members.values():
                group.create_task(self._watch(member))
            await asyncio.Event().wait()  # for ever, also where there is no backend

    async def look(self, member: Member) -> None:
        """Ask one backend how it is, and tell the scheduler."""
        try:
            member.snapshot = await member.backend.scrape()
            member.seen_s = self._monotonic()
            member.failures = 0
        except BackendUnreachableError as error:
            member.failures += 1
            self._on_scrape_failure(member.name, error)
        self._post(BackendSeen(member.state()))

    async def _watch(self, member: Member) -> None:
        look_now = self._look_now[member.name]
        while True:
            look_now.clear()
            await self.look(member)
            factor = min(MAX_INTERVAL_FACTOR, max(1, member.failures))
            jitter = random.uniform(0.9, 1.1)
            try:
                async with asyncio.timeout(self._interval_s * factor * jitter):
                    await look_now.wait()
            except TimeoutError:
                continue
