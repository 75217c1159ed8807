"""Learns the KV capacity of an engine that does not report it, from the requests that the engine keeps waiting.

A full engine with continuous batching queues new requests, and admits one when another ends. From outside it looks like
this: the first token comes later than any prefill takes, and after the end of another request, while tokens of other
requests kept coming. An engine admits in order. So at that moment all requests that were sent earlier are in memory
too, and their tokens together fit. The capacity is the largest sum that was seen to fit.

What does not count as late:

- An answer that comes in one piece has no first token and shows nothing.
- A delay counts only beyond the time that the prompts ahead take at the best speed that was seen.
- A delay during which no token of any request came is a stall, not a queue.

The learned capacity is a limit to be tried out. While requests wait for it and no first token is late, it grows, slowly
at first. If it has become too high, a few requests wait in the engine instead of in our queue, and the limit falls.

Source: the growth, slow near the last limit and then faster, is that of CUBIC (Ha, Rhee & Xu, 2008).
"""

from dataclasses import dataclass, field
from math import exp, inf

LATE_FACTOR, LATE_STEPS, LATE_S = 1.25, 4, 0.25
"""A first token is late after the prefill time of all prompts ahead times the factor, plus steps, plus seconds."""

PROGRESS_STEPS = 16
"""While an engine works, progress comes at least once in this many steps and `LATE_S`. A longer silence is a stall."""

LATE_IN_A_ROW = 3
"""First tokens in a row that must be late before a capacity is learned."""

MARGIN = 0.97
"""Share of the tokens that were seen to fit. Progress is reported late, and memory is allocated in blocks."""

GROWTH = 0.01
"""Relative growth of the limit in the first mean stay of a request, while the limit binds and nothing is late."""

SPEED_MEMORY_S, FIT_MEMORY_S = 1800.0, 300.0
"""Seconds after which the best speed, and the most tokens that fit, have faded to 1/e."""

MIN_STREAMED = 0.25
"""Least share of streamed answers. How many tokens the other answers hold is unknown."""

FIRST_STAY_S, STAY_WINDOW = 10.0, 32
"""Assumed mean stay of a request in seconds, and the number of answers over which means are taken."""


@dataclass(slots=True)
class _Silent:
    """A request without a first token, dispatched after every request that has one.

    Attributes:
        uncached_tokens: tokens of the prompt that the engine cannot have in its prefix cache.
        ahead_tokens: prompt tokens of all silent requests at its dispatch, its own included.
        stalled_s: seconds that the engine had stalled by its dispatch.
    """

    dispatched_s: float
    prompt_tokens: int
    uncached_tokens: int
    ahead_tokens: int
    stalled_s: float
    kv_tokens: int


@dataclass(slots=True)
class LearnedCapacity:
    """The KV capacity of one engine, as its behaviour shows it.

    Attributes:
        tokens: KV tokens that our requests may reach; None while the engine has kept no request waiting.
    """

    tokens: float | None = None
    _silent: dict[str, _Silent] = field(default_factory=dict)
    _silent_prompt_tokens: int = 0
    _silent_kv_tokens: int = 0
    _speed: float = 0.0
    """Highest prefill speed in tokens per second, as of `_speed_s`."""
    _speed_s: float = 0.0
    _fit_tokens: float = 0.0
    """Most KV tokens that fitted, as of `_fit_s`."""
    _fit_s: float = 0.0
    _late_in_a_row: int = 0
    _progress_s: float = inf
    _stalled_s: float = 0.0
    _finish_s: float = -inf
    _stay_s: float = FIRST_STAY_S
    _streamed_share: float = 1.0
    _scraped_s: float = inf
    _bound_stays: float = 0.0
    """Mean stays during which the limit has bound since it was last learned."""

    def on_dispatch(self, request_id: str, prompt_tokens: int, uncached_tokens: int, now: float) -> None:
        """Note a dispatched request. `uncached_tokens` of its prompt cannot be in the engine's prefix cache."""
        self._silent_prompt_tokens += prompt_tokens
        self._silent_kv_tokens += prompt_tokens
        ahead_tokens = self._silent_prompt_tokens
        stalled_s = self._stalled_s + max(0.0, now - self._progress_s)
        self._silent[request_id] = _Silent(now, prompt_tokens, uncached_tokens, ahead_tokens, stalled_s, prompt_tokens)

    def on_wait(self, request_id: str, kv_tokens: int) -> None:
        """Note the KV tokens that the ledger assumes for a request without progress."""
        if own := self._silent.get(request_id):
            self._silent_kv_tokens += kv_tokens - own.kv_tokens
            own.kv_tokens = kv_tokens

    def on_progress(self, step_s: float, now: float) -> None:
        """Note that the engine made progress on some request. `step_s` is the time of one of its steps."""
        silence_s, self._progress_s = now - self._progress_s, now
        if silence_s > LATE_S + PROGRESS_STEPS * step_s:
            self._stalled_s += silence_s

    def on_first_token(self, request_id: str, held_tokens: int, step_s: float, now: float) -> None:
        """Learn from a first token.

        Args:
            request_id: the request that got it.
            held_tokens: KV tokens of all dispatched requests, by the ledger.
            step_s: seconds of one step.
            now: monotonic seconds.
        """
        own = self._silent.get(request_id)
        while request_id in self._silent:  # requests that were dispatched earlier are in memory too
            self._forget(next(iter(self._silent)))
        fit_tokens = held_tokens - self._silent_kv_tokens
        self._fit_tokens = max(fit_tokens, self._fit_tokens * exp((self._fit_s - now) / FIT_MEMORY_S))
        self._fit_s = now
        if own is not None:
            self._late_in_a_row = self._late_in_a_row + 1 if self._is_late(own, step_s, now) else 0
            if self._late_in_a_row >= LATE_IN_A_ROW and self._streamed_share >= MIN_STREAMED:
                self.tokens, self._bound_stays = MARGIN * self._fit_tokens, 0.0
        if self.tokens is not None:
            self.tokens = max(self.tokens, MARGIN * fit_tokens)

    def on_finish(self, request_id: str, stay_s: float | None, now: float, *, streamed: bool) -> None:
        """Note the end of a request.

        Args:
            request_id: the request.
            stay_s: seconds since its dispatch; None unless the answer ended by itself.
            now: monotonic seconds.
            streamed: the answer came token by token.
        """
        if request_id in self._silent:
            self._forget(request_id)
        self._finish_s = now
        if stay_s is not None:
            self._stay_s += (stay_s - self._stay_s) / STAY_WINDOW
            self._streamed_share += (streamed - self._streamed_share) / STAY_WINDOW

    def on_scrape(self, now: float, *, bound: bool) -> None:
        """Let the limit grow with time while it is `bound`: a request waits for it."""
        elapsed_s, self._scraped_s = now - self._scraped_s, now
        if self.tokens is None or not bound or elapsed_s <= 0.0:
            return
        stays = min(1.0, elapsed_s / self._stay_s) if self._stay_s > 0.0 else 1.0
        self._bound_stays += stays
        self.tokens *= exp(GROWTH * stays * (1.0 + self._bound_stays))

    def _is_late(self, own: _Silent, step_s: float, now: float) -> bool:
        """Return whether the engine kept a request waiting until another one ended; learn the engine's speed."""
        silent_s = now - own.dispatched_s
        speed = self._speed * exp((self._speed_s - now) / SPEED_MEMORY_S)
        if silent_s > 0.0:
            self._speed, self._speed_s = max(speed, own.uncached_tokens / silent_s), now
        if not speed or self._finish_s <= own.dispatched_s:
            return False
        due_s = LATE_S + LATE_STEPS * step_s + LATE_FACTOR * own.ahead_tokens / speed
        return silent_s - max(0.0, self._stalled_s - own.stalled_s) > due_s

    def _forget(self, request_id: str) -> None:
        gone = self._silent.pop(request_id)
        self._silent_prompt_tokens -= gone.prompt_tokens
        self._silent_kv_tokens -= gone.kv_tokens
