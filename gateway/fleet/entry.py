"""One engine of the pool: what it said of itself, whether it may get work, and what the scheduler is told of it."""

from dataclasses import dataclass, field
from typing import Literal

from backends.base import Backend, ModelCard, Snapshot
from gateway.fleet.breaker import Breaker, Circuit
from gateway.scheduling.messages import BackendState

FAILURES_TO_UNHEALTHY = 2
"""Scrapes that may fail in a row before a backend gets no more work: one may be slow for a moment."""


@dataclass(slots=True, eq=False)
class BackendEntry:
    """One engine and what is known of it.

    `seen_s` is when it last answered a look; `passing` counts requests that go there unscheduled. A member that is
    `draining` ends what it runs and gets nothing new; one that is `leaving` does so for the last time.
    """

    backend: Backend
    snapshot: Snapshot | None = None
    seen_s: float | None = None
    failures: int = 0
    draining: bool = False
    leaving: bool = False
    passing: int = 0
    breaker: Breaker = field(default_factory=Breaker)

    @property
    def name(self) -> str:
        """As configured."""
        return self.backend.spec.name

    @property
    def healthy(self) -> bool:
        """It has answered a look, and lately."""
        return self.snapshot is not None and self.failures < FAILURES_TO_UNHEALTHY

    @property
    def circuit(self) -> Circuit:
        """How it fares with what it is sent."""
        return self.breaker.circuit

    @property
    def takes_work(self) -> bool:
        """It answers looks, it does not drain, and what it is sent does not fail."""
        return self.healthy and not self.stops and self.circuit is not Circuit.OPEN

    @property
    def stops(self) -> bool:
        """Its operator wants it to get nothing new."""
        return self.draining or self.leaving

    @property
    def condition(self) -> Literal["healthy", "draining", "on_trial", "failing", "unreachable"]:
        """How it is, in a word for its operator."""
        if not self.healthy:
            return "unreachable"
        if self.circuit is not Circuit.CLOSED:
            return "failing" if self.circuit is Circuit.OPEN else "on_trial"
        return "draining" if self.stops else "healthy"

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """Models that it serves, as last told."""
        return self.snapshot.models if self.snapshot else ()

    @property
    def model_names(self) -> frozenset[str]:
        """Names of the models that it serves."""
        return frozenset(card.id for card in self.models)

    def state(self, trial_limit: int | None = None) -> BackendState:
        """What the scheduler needs to know.

        Args:
            trial_limit: most requests at once while it is on trial or warms up.
        """
        snapshot, spec = self.snapshot, self.backend.spec
        most = spec.max_concurrency
        if trial_limit is not None and spec.kind == "static":  # whose trial is a batch, and that of one
            most = trial_limit
        lengths = [card.max_model_len for card in self.models if card.max_model_len is not None]
        return BackendState(
            name=self.name,
            models=self.model_names,
            healthy=self.takes_work,
            kv_capacity_tokens=snapshot.kv_capacity_tokens if snapshot else None,
            kv_used_tokens=snapshot.kv_used_tokens if snapshot else None,
            kv_block_tokens=snapshot.kv_block_tokens if snapshot else 1,
            max_concurrency=most,
            max_model_len=min(lengths, default=None),
            running=snapshot.running if snapshot else None,
            waiting=snapshot.waiting if snapshot else None,
            preemptions=snapshot.preemptions if snapshot else None,
            static=spec.kind == "static",
            reserving=spec.kind == "tgi",
            scraped_s=self.seen_s,
            trial_limit=trial_limit,
        )
