"""One backend in the pool: its last scrape, whether it takes work, and the state that the scheduler gets."""

from dataclasses import dataclass, field
from typing import Literal

from backends.base import Backend, ModelCard, Snapshot
from gateway.fleet.breaker import Breaker, Circuit, Fingerprint
from gateway.scheduling.messages import BackendState

FAILURES_TO_UNHEALTHY = 2
"""Failed scrapes in a row that make a backend unhealthy. One scrape may be slow by chance."""

ErrorSource = Literal["scrape", "credentials", "request"]
"""What failed: a scrape, the gateway's credentials in a request, or a request."""


@dataclass(slots=True)
class LastError:
    """The latest kind of failure of a backend.

    Attributes:
        source: what failed.
        text: the reason, without secrets and without text of a prompt.
        since_s: when it happened first, in monotonic seconds.
        count: how often it has happened since.
        current: whether nothing of the same source has succeeded since.
    """

    source: ErrorSource
    text: str
    since_s: float
    count: int = 1
    current: bool = True


@dataclass(slots=True, eq=False)
class BackendEntry:
    """One backend and everything the pool knows of it.

    Attributes:
        backend: the adapter of the engine.
        snapshot: result of the last successful scrape.
        scraped_s: time of that scrape, in monotonic seconds.
        failures: scrapes that failed since then.
        draining: an operator wants it to get no new requests; the running ones finish.
        leaving: likewise, and the pool removes it when it is idle.
        passthrough_requests: running requests that the scheduler does not know of.
        breaker: its circuit breaker.
        last_error: its latest failure; None if it has had none.
        logged_error: the reason that was logged last; "" after it is over.
    """

    backend: Backend
    snapshot: Snapshot | None = None
    scraped_s: float | None = None
    failures: int = 0
    draining: bool = False
    leaving: bool = False
    passthrough_requests: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    last_error: LastError | None = None
    logged_error: str = ""

    @property
    def name(self) -> str:
        """Its configured name."""
        return self.backend.spec.name

    @property
    def healthy(self) -> bool:
        """Whether a scrape has succeeded, and fewer than `FAILURES_TO_UNHEALTHY` have failed since."""
        return self.snapshot is not None and self.failures < FAILURES_TO_UNHEALTHY

    @property
    def circuit(self) -> Circuit:
        """State of its circuit breaker."""
        return self.breaker.circuit

    @property
    def takes_work(self) -> bool:
        """Whether it may get new requests: it is healthy, it does not drain, and its circuit is not open."""
        return self.healthy and not self.is_draining and self.circuit is not Circuit.OPEN

    @property
    def is_draining(self) -> bool:
        """Whether an operator has drained or removed it."""
        return self.draining or self.leaving

    @property
    def condition(
        self,
    ) -> Literal["healthy", "draining", "on_trial", "failing", "credentials_refused", "unreachable"]:
        """Its condition in one word, for operators."""
        if not self.healthy:
            return "unreachable"
        if self.circuit is not Circuit.CLOSED:
            if self.last_error and self.last_error.current and self.last_error.source == "credentials":
                return "credentials_refused"
            return "failing" if self.circuit is Circuit.OPEN else "on_trial"
        return "draining" if self.is_draining else "healthy"

    def note_error(self, source: ErrorSource, text: str, now: float) -> None:
        """Note a failure, and count it if it is the same as the last one."""
        last = self.last_error
        if last is not None and last.current and (last.source, last.text) == (source, text):
            last.count += 1
        else:
            self.last_error = LastError(source, text, now)

    def clear_error(self, source: ErrorSource) -> bool:
        """Note a success. Return whether it ends the last error, because that has the same source."""
        last = self.last_error
        if last is None or not last.current or last.source != source:
            return False
        last.current = False
        return True

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """Models that it serves, according to the last successful scrape."""
        return self.snapshot.models if self.snapshot else ()

    @property
    def model_names(self) -> frozenset[str]:
        """Names of the models that it serves."""
        return frozenset(card.id for card in self.models)

    def state(
        self, trial_limit: int | None = None, reserved_from: frozenset[Fingerprint] = frozenset()
    ) -> BackendState:
        """Return what the scheduler needs to know.

        Args:
            trial_limit: most concurrent requests while its circuit is half-open or it warms up; None for no limit.
            reserved_from: requests that a half-open circuit does not take yet.
        """
        snapshot, spec = self.snapshot, self.backend.spec
        max_concurrency = spec.max_concurrency
        if trial_limit is not None and spec.kind == "static":  # its trial is one batch, so that batch gets the limit
            max_concurrency = trial_limit
        lengths = [card.max_model_len for card in self.models if card.max_model_len is not None]
        return BackendState(
            name=self.name,
            models=self.model_names,
            healthy=self.takes_work,
            kv_capacity_tokens=snapshot.kv_capacity_tokens if snapshot else None,
            kv_used_tokens=snapshot.kv_used_tokens if snapshot else None,
            kv_block_tokens=snapshot.kv_block_tokens if snapshot else 1,
            max_concurrency=max_concurrency,
            max_model_len=min(lengths, default=None),
            running=snapshot.running if snapshot else None,
            waiting=snapshot.waiting if snapshot else None,
            preemptions=snapshot.preemptions if snapshot else None,
            static=spec.kind == "static",
            reserving=spec.kind == "tgi",
            scraped_s=self.scraped_s,
            trial_limit=trial_limit,
            reserved_from=reserved_from,
        )
