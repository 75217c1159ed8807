"""One backend as the scheduler knows it: its last scrape, and what we have sent there since.

Scrapes come once a second, and hundreds of requests may be dispatched in between. So the ledger of our own dispatches
leads, and each scrape corrects it: by memory that other clients use, by prefixes that requests share, by a limit on
running sequences. When the metrics are stale, the ledger decides alone. When an engine does not report the size of its
memory, the size is learned from the requests that it keeps waiting.
"""

from dataclasses import dataclass, field
from math import inf

from cachetools import LRUCache

from gateway.scheduling.batch_time import BatchTimer
from gateway.scheduling.capacity import LearnedCapacity
from gateway.scheduling.kv_ledger import Curve, KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Request, WaitReason
from gateway.scheduling.queue import WaitingRequest
from gateway.scheduling.scrape_estimates import KvTarget, MaxNumSeqsEstimate, MetricsFreshness, UnaccountedMemory
from gateway.scheduling.step_time import StepTimeModel

STALE_TARGET = 0.9
"""Highest memory target while the metrics are stale and nothing corrects the ledger."""

CACHED_ROOM = 0.5
"""Share of a backend's crowding that is offset if it has the whole prompt in its prefix cache."""

TYPICAL_KV_TOKENS = 100_000
"""Assumed KV capacity of a backend that does not report one, for comparing how crowded backends are."""

REMEMBERED_PREFIXES = 4096
"""Prefixes that are remembered per backend. An older one counts as evicted from the engine's cache."""


@dataclass(slots=True)
class PrefixCache:
    """The prefixes that a backend was sent lately, and so probably has in its prefix cache; the latest comes last."""

    _keys: LRUCache[int, None] = field(default_factory=lambda: LRUCache(REMEMBERED_PREFIXES))

    def cached_tokens(self, request: Request) -> int:
        """Return how many of the prompt's tokens the backend probably has in its cache."""
        if not request.prefixes:
            return 0
        return next((prefix.tokens for prefix in request.prefixes if prefix.key in self._keys), 0)

    def add(self, request: Request) -> None:
        """Remember the prefixes of a request that is sent there."""
        for prefix in reversed(request.prefixes):
            self._keys[prefix.key] = None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What the scheduler knows of a backend, for `/admin/stats` and metrics.

    Attributes:
        in_flight: our requests on the backend.
        kv_held_tokens: KV tokens that they hold now.
        kv_reserved_tokens: KV tokens that they will hold at the predicted peak.
        kv_learned_tokens: KV capacity learned from behaviour; None if none was learned.
        kv_target: share of the KV capacity that the predicted peak may fill.
        healthy: the backend answers.
        reports_memory: its metrics tell the memory in use.
        metrics_fresh: its metrics follow its load.
        max_num_seqs: most requests that the engine was seen to run at once; None if no limit showed.
        trial_limit: most requests that it gets while it is on trial or warms up; None if it is not limited so.
        tpot_s: predicted seconds per output token at the current load.
    """

    in_flight: int
    kv_held_tokens: int
    kv_reserved_tokens: int
    kv_learned_tokens: int | None
    kv_target: float
    healthy: bool
    reports_memory: bool
    metrics_fresh: bool
    max_num_seqs: int | None
    trial_limit: int | None
    tpot_s: float


@dataclass(slots=True)
class _Timing:
    """When a running request was dispatched, and when its last progress came."""

    request: Request
    dispatched_s: float
    progress_s: float
    output_tokens: int = 0


@dataclass(slots=True, eq=False)
class BackendLoad:
    """A backend's last scrape, its ledger, and everything that is learned of it.

    Attributes:
        full_until_s: the backend answered that it is full, and gets nothing before this time.
    """

    state: BackendState
    ledger: KvLedger = field(default_factory=KvLedger)
    speed: StepTimeModel = field(default_factory=StepTimeModel)
    target: KvTarget = field(default_factory=KvTarget)
    max_num_seqs: MaxNumSeqsEstimate = field(default_factory=MaxNumSeqsEstimate)
    freshness: MetricsFreshness = field(default_factory=MetricsFreshness)
    unaccounted: UnaccountedMemory = field(default_factory=UnaccountedMemory)
    capacity: LearnedCapacity = field(default_factory=LearnedCapacity)
    prefix_cache: PrefixCache = field(default_factory=PrefixCache)
    batches: BatchTimer = field(default_factory=BatchTimer)
    full_until_s: float = 0.0
    _timings: dict[str, _Timing] = field(default_factory=dict)
    _trials: set[str] = field(default_factory=set)
    _refused_tokens: float = inf
    """Requests of this size or more have had no room since memory was last freed."""
    _tpot_s: float | None = None
    """Cached prediction; every request that is placed anywhere needs it."""

    @property
    def name(self) -> str:
        """The backend's configured name."""
        return self.state.name

    @property
    def capacity_tokens(self) -> float | None:
        """KV tokens that the backend holds, reported or learned; None if neither is known."""
        return self.state.kv_capacity_tokens or self.capacity.tokens

    @property
    def budget_tokens(self) -> float:
        """KV tokens that our own requests may reach at their peak; meaningless if the capacity is unknown."""
        share = self.target.share if self.freshness.is_fresh else min(self.target.share, STALE_TARGET)
        return share * (self.capacity_tokens or 0.0) - self.unaccounted.tokens

    @property
    def tpot_s(self) -> float:
        """Predicted seconds per output token with one more request running."""
        if self._tpot_s is None:
            self._tpot_s = self.speed.tpot_s(len(self.ledger) + 1, self.ledger.held_tokens)
        return self._tpot_s

    def status(self) -> BackendStatus:
        """Return what is known of the backend."""
        ledger, learned, state = self.ledger, self.capacity.tokens, self.state
        return BackendStatus(
            in_flight=len(ledger),
            kv_held_tokens=ledger.held_tokens,
            kv_reserved_tokens=round(ledger.peak_tokens()),
            kv_learned_tokens=None if learned is None else round(learned),
            kv_target=self.target.share,
            healthy=state.healthy,
            reports_memory=state.kv_used_tokens is not None,
            metrics_fresh=self.freshness.is_fresh,
            max_num_seqs=self.max_num_seqs.learned,
            trial_limit=state.trial_limit,
            tpot_s=self.speed.tpot_s(len(ledger), ledger.held_tokens),
        )

    # Admission

    def quick_reason(self, waiting: WaitingRequest, now: float) -> WaitReason | None:
        """Return the reason against a request here, without the exact memory test; None if there is none.

        This cheap check rejects most backends. It includes the memory of earlier tests: a request that is no smaller
        than one that had no room has none either, until memory is freed.
        """
        state = self.state
        if waiting.request.model not in state.models:
            return WaitReason.OTHER_MODEL
        if reason := self.reason_to_avoid(waiting):
            return reason
        if waiting.tokens >= self._refused_tokens:
            return WaitReason.MEMORY
        if not state.healthy:
            return WaitReason.UNHEALTHY
        if self.full_until_s > now:
            return WaitReason.FULL
        if state.trial_limit is not None and len(self._trials) >= state.trial_limit:
            return WaitReason.TRIAL_LIMIT
        running = len(self.ledger)
        if running and state.static:
            return WaitReason.BATCH
        if running and running >= self.max_num_seqs.limit(state.max_concurrency):
            return WaitReason.MAX_NUM_SEQS
        return None

    def reason_to_avoid(self, waiting: WaitingRequest) -> WaitReason | None:
        """Return the reason why the request does not wait for this backend, so that other requests may overtake it."""
        state = self.state
        if state.name in waiting.failed_on:
            return WaitReason.FAILED
        if state.name in waiting.avoids:
            reserved = self.is_reserved_from(waiting.request)
            return WaitReason.TRIAL_RESERVED if reserved else WaitReason.CONTEXT
        return None

    def fits_context(self, request: Request) -> bool:
        """Return whether the backend's context is long enough for the request, as far as that is known."""
        return self.state.max_model_len is None or request.context_tokens <= self.state.max_model_len

    def is_reserved_from(self, request: Request) -> bool:
        """Return whether the backend tries another request first, because it has failed this one."""
        return bool(self.state.reserved_from) and request.fingerprint in self.state.reserved_from

    def has_room(self, request: Request, curve: Curve) -> bool:
        """Return whether the memory has room for the request's peak.

        A backend that runs none of our requests takes any request, so that no engine stays idle. A prompt longer than
        the context also passes: the engine rejects it at once.
        """
        state = self.state
        too_long = state.max_model_len is not None and request.prompt_tokens >= state.max_model_len
        if not self.capacity_tokens or not len(self.ledger) or too_long:
            return True
        return self.ledger.has_room(curve, self.budget_tokens)

    def remember_refusal(self, tokens: int) -> None:
        """Reject requests of `tokens` or more without a test until memory is freed."""
        self._refused_tokens = min(self._refused_tokens, tokens)

    # Comparison of backends

    def completion_s(self, request: Request, output_tokens: float) -> float:
        """Predict the request's time here in seconds: prefill of what is not cached, then one step per token."""
        if self.state.static:
            return self.batches.time(request.sequences, request.prompt_tokens, max(1, round(output_tokens)))
        uncached = request.prompt_tokens - self.prefix_cache.cached_tokens(request)
        return self.speed.prefill_s(max(0, uncached)) + output_tokens * self.tpot_s

    def crowding(self, request: Request) -> float:
        """Return the number of requests here, over the backend's size and reduced by a cached prefix.

        A backend that has the whole prompt cached is preferred to others while it has up to twice their requests.
        """
        cached = min(1.0, self.prefix_cache.cached_tokens(request) / max(1, request.prompt_tokens))
        size = self.state.kv_capacity_tokens or TYPICAL_KV_TOKENS
        return (len(self.ledger) + 1) * (1.0 - CACHED_ROOM * cached) / size

    # Events

    def on_scrape(self, state: BackendState, now: float) -> None:
        """Take over a scrape. A backend that does not answer has a state that is not healthy."""
        before, self.state = self.state, state
        ledger = self.ledger
        ledger.block_tokens, ledger.reserving = state.kv_block_tokens, state.reserving
        self.freshness.on_scrape(before, state, ledger.held_tokens, now)
        self._grow_unstreamed(now)
        if self._learns_capacity:
            self.capacity.on_scrape(now, bound=self._refused_tokens < inf)
        self._refused_tokens, self._tpot_s = inf, None
        if not state.healthy or state.trial_limit is None:
            self._trials.clear()
        if not self.freshness.is_fresh or state.kv_used_tokens is None:
            self.unaccounted.tokens = 0.0
            return
        self.max_num_seqs.on_scrape(state)
        mean_tokens = ledger.held_tokens / max(1, len(ledger))
        self.target.on_scrape(state.preemptions, self.speed.prefill_s(mean_tokens), now)
        self.unaccounted.on_scrape(state, state.kv_used_tokens, ledger.held_tokens, len(ledger))

    def admit(self, request: Request, length: LengthQuantiles, curve: Curve, now: float) -> None:
        """Enter a request that is dispatched here, with the length and the forecast that it was tested with."""
        self.ledger.admit(request, length, curve)
        self._tpot_s = None
        if self._learns_capacity:
            uncached = max(0, request.prompt_tokens - self.prefix_cache.cached_tokens(request))
            self.capacity.on_dispatch(request.id, request.prompt_tokens, uncached, now)
        self.prefix_cache.add(request)
        self._timings[request.id] = _Timing(request, now, now)
        if self.state.trial_limit is not None:
            self._trials.add(request.id)

    def grow(self, request: Request, output_tokens: int, now: float) -> None:
        """Enter the progress of a request, and learn the backend's speed from it."""
        timing = self._timings[request.id]
        running, kv_tokens = len(self.ledger), self.ledger.held_tokens
        first = not timing.output_tokens
        if first:
            self.speed.learn_first_token(now - timing.dispatched_s, request.prompt_tokens, running, kv_tokens)
        elif (tokens := output_tokens - timing.output_tokens) > 0 and now > timing.progress_s:
            per_sequence = tokens / request.sequences
            self.speed.learn_decode((now - timing.progress_s) / per_sequence, running, kv_tokens)
        timing.progress_s, timing.output_tokens = now, output_tokens
        self.ledger.grow(request.id, output_tokens)
        if self._learns_capacity:
            step_s = self.speed.tpot_s(running, kv_tokens)
            self.capacity.on_progress(step_s, now)
            if first:
                self.capacity.on_first_token(request.id, self.ledger.held_tokens, step_s, now)

    def release(self, request: Request, output_tokens: int | None, now: float) -> None:
        """Remove a request that is over; `output_tokens` is set only for an answer that ended by itself."""
        self.ledger.release(request.id)
        timing = self._timings.pop(request.id, None)
        if timing is not None and self._learns_capacity:
            self.capacity.on_progress(self.speed.tpot_s(len(self.ledger), self.ledger.held_tokens), now)
            stay_s = now - timing.dispatched_s if output_tokens else None
            self.capacity.on_finish(request.id, stay_s, now, streamed=timing.output_tokens > 0)
        self._trials.discard(request.id)
        self._refused_tokens, self._tpot_s = inf, None
        if self.state.static:
            self.batches.finish_one(output_tokens and output_tokens // request.sequences)
            if not len(self.ledger):
                self.batches.end(now)

    @property
    def _learns_capacity(self) -> bool:
        """Whether the KV capacity has to be learned: the engine does not report it."""
        return not self.state.kv_capacity_tokens and not self.state.static

    def _grow_unstreamed(self, now: float) -> None:
        """Let answers without progress grow by the predicted speed: they come in one piece at their end."""
        tpot_s = self.speed.tpot_s(len(self.ledger), self.ledger.held_tokens)
        for request_id, timing in self._timings.items():
            if not timing.output_tokens:
                request, tokens = timing.request, int((now - timing.dispatched_s) / tpot_s)
                tokens = tokens if request.length.cap is None else min(tokens, request.length.cap)
                self.ledger.grow(request_id, tokens * request.sequences)
                self.capacity.on_wait(request_id, request.prompt_tokens + tokens * request.sequences)
