"""What is learned from the scrapes of an engine: stale metrics, memory of other clients, limits.

Each class here learns from one scrape at a time. The ledger of our own dispatches leads; these estimates correct it.
"""

from dataclasses import dataclass
from math import exp, inf

from gateway.scheduling.messages import BackendState

STALE_SCRAPES = 3
"""Scrapes in a row that show the same although our own load changed; then the metrics are stale."""

STALE_S = 10.0
"""Age in seconds from which a scrape is stale."""

MAX_SHARED = 0.5
"""Largest share of the ledger's tokens that requests may be estimated to share."""

LASTING_SCRAPES = 3
"""Scrapes over which memory must be in use before it is attributed to other clients."""

SHARED_WEIGHT = 0.2
"""Weight of one scrape that shows less memory in use than the ledger has: a prompt may be only half computed."""

MEMORY_NOT_FULL = 0.9
"""Requests do not wait for memory while less than this share of it is in use."""

TARGET = 0.97
"""Share of the KV capacity that the predicted peak may fill while the engine does not preempt."""

MIN_TARGET = 0.85
"""Lowest share that preemptions lead to."""

MAX_FALL = 0.05
"""Largest relative fall of the target from one scrape to the next."""

RECOVERY_S = 20.0
"""Time in seconds after which 1/e of a fall is left."""


@dataclass(slots=True)
class MetricsFreshness:
    """Whether an engine's metrics still follow its load. An exporter may hang while the engine works on."""

    _held_tokens: int = 0
    _same_scrapes: int = 0
    _old: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether the metrics may be used."""
        return not self._old and self._same_scrapes < STALE_SCRAPES

    def on_scrape(self, before: BackendState, state: BackendState, held_tokens: int, now: float) -> None:
        """Count scrapes that show the same although `held_tokens`, the ledger's KV tokens, changed."""
        held_before, self._held_tokens = self._held_tokens, held_tokens
        noticeable = max(state.kv_block_tokens, (state.kv_capacity_tokens or 0) // 100)
        same = (state.kv_used_tokens, state.running) == (before.kv_used_tokens, before.running)
        self._old = state.scraped_s is not None and now - state.scraped_s > STALE_S
        if not same or state.kv_used_tokens is None:
            self._same_scrapes = 0
        elif abs(held_tokens - held_before) > noticeable:
            self._same_scrapes += 1


@dataclass(slots=True)
class UnaccountedMemory:
    """KV tokens in use on an engine beyond the ledger's; negative where requests share prefixes."""

    tokens: float = 0.0
    _gaps: tuple[float, ...] = ()

    def on_scrape(self, state: BackendState, used_tokens: int, held_tokens: int, in_flight: int) -> None:
        """Learn from the difference between the engine's memory in use and the ledger's.

        A surplus that lasts over several scrapes belongs to other clients. A surplus in one scrape is a request that
        has just ended. A deficit means shared prefixes, but only while the engine runs all that it was sent: a request
        that waits in the engine, or was preempted, holds nothing now and will hold its memory later.

        Args:
            state: the scrape.
            used_tokens: KV tokens in use, by the engine's own account.
            held_tokens: KV tokens that our requests hold, by the ledger.
            in_flight: our requests on the engine.
        """
        gap = max(float(used_tokens - held_tokens), -MAX_SHARED * held_tokens)
        if gap < 0.0 and (state.waiting or state.running is None or state.running < in_flight):
            gap = 0.0
        self._gaps = (*self._gaps, gap)[-LASTING_SCRAPES:]
        lasting = min(self._gaps)
        weight = 1.0 if lasting >= 0.0 else SHARED_WEIGHT
        self.tokens += weight * (lasting - self.tokens)


@dataclass(slots=True)
class MaxNumSeqsEstimate:
    """How many requests an engine runs at once: vLLM's `max_num_seqs`, which no metric reports.

    If requests wait in the engine although memory is free, and the number of running requests stays the same, then that
    number is the limit.
    """

    _learned: float = inf
    _running: int | None = None

    @property
    def learned(self) -> int | None:
        """The limit that the engine has shown; None if it has shown none."""
        return None if self._learned == inf else round(self._learned)

    def limit(self, configured: int | None) -> float:
        """Return how many requests may run there: the lower of the learned and the configured limit."""
        return self._learned if configured is None else min(self._learned, configured)

    def on_scrape(self, state: BackendState) -> None:
        """Learn from a scrape."""
        used, capacity, running = state.kv_used_tokens, state.kv_capacity_tokens, state.running
        if used is None or not capacity or running is None or state.waiting is None:
            return
        waits_for_a_slot = state.waiting > 0 and used < MEMORY_NOT_FULL * capacity
        if waits_for_a_slot and running == self._running:
            self._learned = running
        elif not state.waiting and running >= self._learned:
            self._learned += 1  # the engine may have been restarted with a higher limit
        self._running = running if waits_for_a_slot else None


@dataclass(slots=True)
class KvTarget:
    """Share of an engine's KV capacity that the predicted peak may fill.

    The ledger's forecast is already cautious, so the share never rises above `TARGET`. With long answers the effect of
    a rise would come minutes later, as hundreds of preemptions at once. When an engine preempts, the share falls by the
    share of its time that the engine lost, and then recovers slowly.

    Source: Chiu & Jain, Analysis of the increase and decrease algorithms (1989).
    """

    share: float = TARGET
    _preemptions: int | None = None
    _scraped_s: float | None = None

    def on_scrape(self, preemptions: int | None, redo_s: float, now: float) -> None:
        """Adapt the share to the preemptions since the last scrape.

        Args:
            preemptions: the engine's count since its start; None if it reports none.
            redo_s: seconds that the engine needs to repeat the work of one preempted request.
            now: time of the scrape in monotonic seconds.
        """
        before, self._preemptions = self._preemptions, preemptions
        elapsed_s = now - self._scraped_s if self._scraped_s is not None else 0.0
        self._scraped_s = now
        if preemptions is None or before is None or elapsed_s <= 0.0:
            return
        lost = (preemptions - before) * redo_s / elapsed_s
        self.share += (TARGET - self.share) * (1.0 - exp(-elapsed_s / RECOVERY_S))
        self.share = max(MIN_TARGET, self.share * (1.0 - min(MAX_FALL, max(0.0, lost))))
