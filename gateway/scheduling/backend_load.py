"""One backend as the scheduler knows it: what it said of itself, and what it was given since.

A look at an engine is a second old when the next one comes, and hundreds of requests may go out in between. So the
ledger of our own dispatches leads, and a look corrects it: other clients' memory, prefixes that requests share, seats
that we did not know of. An engine whose looks stop changing while work goes in and out tells nothing any more, and is
run by the ledger alone; one that never told how much memory it has shows it by whom it keeps waiting.
"""

from dataclasses import dataclass, field
from math import inf

from gateway.scheduling.affinity import PrefixMemory
from gateway.scheduling.batch_watch import BatchWatch
from gateway.scheduling.capacity import LearnedCapacity
from gateway.scheduling.kv_ledger import Curve, KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.max_num_seqs import Seats
from gateway.scheduling.messages import BackendState, Request
from gateway.scheduling.step_time import StepTimeModel
from gateway.scheduling.target import KvTarget

FULL_BACKOFF_S = 0.25
"""How long a backend that answered 'full' is left alone."""

STALE_LOOKS = 3
"""Looks in a row that may show the same though work went in or out; then they are not believed."""

STALE_S = 10.0
"""Age of a look from which it is not believed."""

STALE_MARGIN = 0.9
"""Of the target, where there is no look to correct the ledger by."""


MOST_SHARED = 0.5
"""Of the ledger's tokens: the most that may be in use less than it has."""

PERSISTENT_LOOKS = 3
"""Looks over which memory that is not ours must have been in use."""

SHARED_WEIGHT = 0.2
"""Of a look at an engine that uses less than it was thought to: a prompt half read in is no shared prefix."""


CACHED_ROOM = 0.5
"""Share of a backend's load that the whole prompt in its prefix cache outweighs."""

TYPICAL_KV_TOKENS = 100_000
"""Stands in for the size of a backend that does not tell it."""


@dataclass(slots=True)
class _Timing:
    """When a running request was sent, and when it was last heard of."""

    request: Request
    sent_s: float
    heard_s: float
    output_tokens: int = 0


@dataclass(slots=True)
class BackendLoad:
    """A backend's state, ledger, memory target, seats and speed."""

    state: BackendState
    ledger: KvLedger = field(default_factory=KvLedger)
    target: KvTarget = field(default_factory=KvTarget)
    seats: Seats = field(default_factory=Seats)
    learned: LearnedCapacity = field(default_factory=LearnedCapacity)
    speed: StepTimeModel = field(default_factory=StepTimeModel)
    batches: BatchWatch = field(default_factory=BatchWatch)
    prefixes: PrefixMemory = field(default_factory=PrefixMemory)
    unaccounted_tokens: float = 0.0
    """KV tokens in use there beyond the ledger's; fewer than none where requests share prefixes."""
    full_until_s: float = 0.0
    _timings: dict[str, _Timing] = field(default_factory=dict)
    _trials: set[str] = field(default_factory=set)
    _refused_tokens: float = inf
    _tpot_s: float | None = None
    """Known until something changes here: it is asked for with every request that is placed anywhere."""
    _gaps: tuple[float, ...] = ()
    _held_at_look: int = 0
    _same_looks: int = 0
    _old: bool = False

    @property
    def name(self) -> str:
        """As configured."""
        return self.state.name

    @property
    def believed(self) -> bool:
        """Whether looks at the backend still show what goes on there."""
        return not self._old and self._same_looks < STALE_LOOKS

    @property
    def capacity_tokens(self) -> float | None:
        """KV tokens that the backend holds, by its own account or by its behaviour; None if neither tells."""
        return self.state.kv_capacity_tokens or self.learned.tokens

    @property
    def _is_untold(self) -> bool:
        """Whether its capacity has to be learned from what it does."""
        return not self.state.kv_capacity_tokens and not self.state.static

    @property
    def budget_tokens(self) -> float:
        """KV tokens that our own requests may come to; none if the capacity is not known."""
        share = self.target.share if self.believed else min(self.target.share, STALE_MARGIN)
        return share * (self.capacity_tokens or 0.0) - self.unaccounted_tokens

    def see(self, state: BackendState, now: float) -> None:
        """Take in a look at the backend, or that it does not answer."""
        before, self.state = self.state, state
        self.ledger.block_tokens, self.ledger.reserving = state.kv_block_tokens, state.reserving
        self._judge(before, state, now)
        self._grow_unheard(now)
        if self._is_untold:
            self.learned.look(now, bound=self._refused_tokens < inf)
        self._refused_tokens, self._tpot_s = inf, None
        if not state.healthy or state.trial_limit is None:
            self._trials.clear()
        if not self.believed or state.kv_used_tokens is None:
            self.unaccounted_tokens = 0.0
            return
        self.seats.see(state)
        self.target.see(state.preemptions, self.speed.prefill_s(self._mean_tokens()), now)
        self._reconcile(state, state.kv_used_tokens)

    def can_take(self, request: Request, tokens: int, now: float) -> bool:
        """Tell, at the cost of a glance, whether it is worth asking for room here.

        Args:
            request: that is to be placed.
            tokens: of its prompt and predicted answer; as many were refused since room was last made, so are these.
            now: monotonic seconds.
        """
        if tokens >= self._refused_tokens:
            return False
        state = self.state
        if not state.healthy or self.full_until_s > now or request.model not in state.models:
            return False
        if state.trial_limit is not None and len(self._trials) >= state.trial_limit:
            return False
        running = len(self.ledger)
        if state.static:
            return not running
        return not running or running < self.seats.most(state.max_concurrency)

    def has_room(self, request: Request, tokens: int, curve: Curve) -> bool:
        """Tell whether the memory has room for a request, and remember until room is made how many tokens had none."""
        if self.fits(request, curve):
            return True
        self._refused_tokens = tokens
        return False

    def fits(self, request: Request, curve: Curve) -> bool:
        """Tell whether a request with this forecast stays within the memory at its peak.

        A backend that runs nothing of ours takes anything: never idle an engine to be clever. A prompt over the context
        is refused there at once, and holds up nobody.
        """
        state = self.state
        too_long = state.max_model_len is not None and request.prompt_tokens >= state.max_model_len
        if not self.capacity_tokens or not len(self.ledger) or too_long:
            return True
        return self.ledger.has_room(curve, self.budget_tokens)

    def completion_s(self, request: Request, output_tokens: float) -> float:
        """Predict how long the request would take here: prefill of what is not cached, then a step a token."""
        if self.state.static:
            return self.batches.time(request.sequences, request.prompt_tokens, max(1, round(output_tokens)))
        fresh = request.prompt_tokens - self.prefixes.shared_tokens(request)
        return self.speed.prefill_s(max(0, fresh)) + output_tokens * self.tpot_s

    @property
    def tpot_s(self) -> float:
        """Predicted seconds a token with one more request running."""
        if self._tpot_s is None:
            self._tpot_s = self.speed.tpot_s(len(self.ledger) + 1, self.ledger.held_tokens)
        return self._tpot_s

    def crowding(self, request: Request) -> float:
        """Return how many requests the backend would have by its size; a cached prefix counts as room.

        One that has the whole prompt cached may have twice as many as another and is still preferred.
        """
        cached = min(1.0, self.prefixes.shared_tokens(request) / max(1, request.prompt_tokens))
        size = self.state.kv_capacity_tokens or TYPICAL_KV_TOKENS
        return (len(self.ledger) + 1) * (1.0 - CACHED_ROOM * cached) / size

    def admit(self, request: Request, length: LengthQuantiles, curve: Curve, now: float) -> None:
        """Enter a request that is sent."""
        self.ledger.admit(request, length, curve)
        self._tpot_s = None
        if self._is_untold:
            fresh_tokens = max(0, request.prompt_tokens - self.prefixes.shared_tokens(request))
            self.learned.send(request.id, request.prompt_tokens, fresh_tokens, now)
        self.prefixes.note(request)
        self._timings[request.id] = _Timing(request, now, now)
        if self.state.trial_limit is not None:
            self._trials.add(request.id)

    def grow(self, request: Request, output_tokens: int, now: float) -> None:
        """Note an answer's growth, and learn the backend's speed from it."""
        timing = self._timings[request.id]
        running, kv_tokens = len(self.ledger), self.ledger.held_tokens
        first = not timing.output_tokens
        if first:
            self.speed.note_first_token(now - timing.sent_s, request.prompt_tokens, running, kv_tokens)
        elif (tokens := output_tokens - timing.output_tokens) > 0 and now > timing.heard_s:
            per_sequence = tokens / request.sequences
            self.speed.note_decode((now - timing.heard_s) / per_sequence, running, kv_tokens)
        timing.heard_s, timing.output_tokens = now, output_tokens
        self.ledger.grow(request.id, output_tokens)
        if self._is_untold:
            step_s = self.speed.tpot_s(running, kv_tokens)
            self.learned.hear(step_s, now)
            if first:
                self.learned.begin(request.id, self.ledger.held_tokens, step_s, now)

    def release(self, request: Request, output_tokens: int | None, now: float) -> None:
        """Take out a request that is over; `output_tokens` of an answer that came to its own end."""
        self.ledger.release(request.id)
        timing = self._timings.pop(request.id, None)
        if timing is not None and self._is_untold:
            self.learned.hear(self.speed.tpot_s(len(self.ledger), self.ledger.held_tokens), now)
            stayed_s = now - timing.sent_s if output_tokens else None
            self.learned.end(request.id, stayed_s, now, heard=timing.output_tokens > 0)
        self._trials.discard(request.id)
        self._refused_tokens, self._tpot_s = inf, None
        if self.state.static:
            self.batches.finish_one(output_tokens and output_tokens // request.sequences)
            if not len(self.ledger):
                self.batches.end(now)

    def _judge(self, before: BackendState, state: BackendState, now: float) -> None:
        """Count looks that show the same though our own part changed."""
        held_before, self._held_at_look = self._held_at_look, self.ledger.held_tokens
        moved = abs(self._held_at_look - held_before) > max(
            state.kv_block_tokens, (state.kv_capacity_tokens or 0) // 100
        )
        same = (state.kv_used_tokens, state.running) == (before.kv_used_tokens, before.running)
        self._old = state.scraped_s is not None and now - state.scraped_s > STALE_S
        if not same or state.kv_used_tokens is None:
            self._same_looks = 0
        elif moved:
            self._same_looks += 1

    def _reconcile(self, state: BackendState, used_tokens: int) -> None:
        """Correct the ledger by the memory in use.

        More than the ledger has, look after look, is somebody else's; once, it is what has ended meanwhile. Less may be
        prefixes that requests share, but only where the engine runs all that it was sent: one that waits, or that was
        preempted, holds nothing now and will.
        """
        held = self.ledger.held_tokens
        gap = max(float(used_tokens - held), -MOST_SHARED * held)
        if gap < 0.0 and (state.waiting or state.running is None or state.running < len(self.ledger)):
            gap = 0.0
        self._gaps = (*self._gaps, gap)[-PERSISTENT_LOOKS:]
        lasting = min(self._gaps)
        weight = 1.0 if lasting >= 0.0 else SHARED_WEIGHT
        self.unaccounted_tokens += weight * (lasting - self.unaccounted_tokens)

    def _mean_tokens(self) -> float:
        """KV tokens of one of our requests there, on average."""
        return self.ledger.held_tokens / max(1, len(self.ledger))

    def _grow_unheard(self, now: float) -> None:
        """Let answers that come in one piece grow by the clock: nobody hears of their tokens."""
        tpot_s = self.speed.tpot_s(len(self.ledger), self.ledger.held_tokens)
        for request_id, timing in self._timings.items():
            if not timing.output_tokens:
                request, each = timing.request, int((now - timing.sent_s) / tpot_s)
                each = each if request.length.cap is None else min(each, request.length.cap)
                self.ledger.grow(request_id, each * request.sequences)
                self.learned.hold(request_id, request.prompt_tokens + each * request.sequences)
