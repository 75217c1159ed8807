"""How much KV memory an engine has that does not tell: learned from the requests that it keeps waiting.

An engine with continuous batching that is full queues what else it is sent, and admits it when another ends. Seen from
outside, a first token comes later than any prefill takes, after somebody's end, while others' tokens went on coming. At
that moment whatever was sent before the request is in memory with it, since an engine admits in order and takes back
first whom it preempted; so what they hold, fits. The capacity is the most that was seen to fit.

Nothing is taken for late before it is: answers that come in one piece have no first token and tell nothing, and an
engine of which nothing is known is not held back. Prompts differ in length, so a delay counts only beyond what the
prompts ahead take at the best speed that was seen, and a delay in which nothing at all was heard is no queue.

What is learned is a limit to be tried: while it keeps requests waiting and none of those sent is late, it grows, slowly
at first. Too high a limit costs a few requests a wait in the engine instead of one here, and is found out by it.

Source: the growth, slow near the last limit and then ever faster, is that of CUBIC (Ha, Rhee & Xu, 2008).
"""

from dataclasses import dataclass, field
from math import exp, inf

LATE_FACTOR, LATE_STEPS, LATE_S = 1.25, 4, 0.25
"""A first token is late beyond so many times the prefill of all that is ahead, so many steps and so many seconds."""

PROGRESS_STEPS = 16
"""Steps in which some answer is heard of while the engine works, and `LATE_S`; a longer silence is a stall."""

STREAK = 3
"""First tokens in a row that must be late."""

MARGIN = 0.97
"""Of what was seen to fit: answers are heard of some tokens late, and take whole blocks."""

GROWTH = 0.01
"""By how much the limit grows in the first mean stay of a request in which it binds and nothing is late."""

SPEED_MEMORY_S, MOST_MEMORY_S = 1800.0, 300.0
"""Time in which the best speed and the most tokens that fit fade to 1/e."""

HEARD = 0.25
"""Least share of the answers that come token by token: of the others nobody knows what they hold."""

FIRST_STAY_S, ENDS = 10.0, 32
"""Mean stay before one was seen; answers that means are taken of, about."""


@dataclass(slots=True)
class _Silent:
    """A request that was sent after every one that has begun to answer."""

    sent_s: float
    prompt_tokens: int
    fresh_tokens: int
    """Of the prompt that no request had before."""
    ahead_tokens: int
    """Of the prompts that were silent when it was sent, its own among them."""
    stalled_s: float
    """The engine's until then, with the silence that it fell into."""
    kv_tokens: int


@dataclass(slots=True)
class LearnedCapacity:
    """One engine's KV capacity as its behaviour tells it.

    Attributes:
        tokens: that its requests may come to, as the ledger counts them; None as long as it has kept none waiting.
    """

    tokens: float | None = None
    _silent: dict[str, _Silent] = field(default_factory=dict)
    _silent_prompt_tokens: int = 0
    _silent_kv_tokens: int = 0
    _speed: float = 0.0
    """The most prompt tokens a second, at `_speed_s`."""
    _speed_s: float = 0.0
    _most_tokens: float = 0.0
    """The most that fitted, at `_most_s`."""
    _most_s: float = 0.0
    _late_in_a_row: int = 0
    _heard_s: float = inf
    _stalled_s: float = 0.0
    _ended_s: float = -inf
    _stay_s: float = FIRST_STAY_S
    _heard_share: float = 1.0
    _looked_s: float = inf
    _quiet_stays: float = 0.0
    """Mean stays in which the limit bound since it was last learned."""

    def send(self, request_id: str, prompt_tokens: int, fresh_tokens: int, now: float) -> None:
        """Note a request that is sent, `fresh_tokens` of whose prompt the engine cannot have in its prefix cache."""
        self._silent_prompt_tokens += prompt_tokens
        self._silent_kv_tokens += prompt_tokens
        ahead_tokens = self._silent_prompt_tokens
        stalled_s = self._stalled_s + max(0.0, now - self._heard_s)
        self._silent[request_id] = _Silent(now, prompt_tokens, fresh_tokens, ahead_tokens, stalled_s, prompt_tokens)

    def hold(self, request_id: str, kv_tokens: int) -> None:
        """Note what the ledger has for a request that is not heard of, if it was sent after all that are."""
        if own := self._silent.get(request_id):
            self._silent_kv_tokens += kv_tokens - own.kv_tokens
            own.kv_tokens = kv_tokens

    def hear(self, step_s: float, now: float) -> None:
        """Note that the engine lives; `step_s` is what one of its steps takes."""
        silence_s, self._heard_s = now - self._heard_s, now
        if silence_s > LATE_S + PROGRESS_STEPS * step_s:
            self._stalled_s += silence_s

    def begin(self, request_id: str, held_tokens: int, step_s: float, now: float) -> None:
        """Learn from a first token.

        Args:
            request_id: whose.
            held_tokens: the ledger's, of all that was sent.
            step_s: that a step takes.
            now: monotonic seconds.
        """
        own = self._silent.get(request_id)
        while request_id in self._silent:  # whoever was sent before it is in memory too, whether it is heard of or not
            self._forget(next(iter(self._silent)))
        fits = held_tokens - self._silent_kv_tokens
        self._most_tokens = max(fits, self._most_tokens * exp((self._most_s - now) / MOST_MEMORY_S))
        self._most_s = now
        if own is not None:
            self._late_in_a_row = self._late_in_a_row + 1 if self._is_late(own, step_s, now) else 0
            if self._late_in_a_row >= STREAK and self._heard_share >= HEARD:
                self.tokens, self._quiet_stays = MARGIN * self._most_tokens, 0.0
        if self.tokens is not None:
            self.tokens = max(self.tokens, MARGIN * fits)

    def end(self, request_id: str, stayed_s: float | None, now: float, *, heard: bool) -> None:
        """Note that a request is over.

        Args:
            request_id: whose.
            stayed_s: since it was sent, if its answer came to its own end.
            now: monotonic seconds.
            heard: its answer came token by token.
        """
        if request_id in self._silent:
            self._forget(request_id)
        self._ended_s = now
        if stayed_s is not None:
            self._stay_s += (stayed_s - self._stay_s) / ENDS
            self._heard_share += (heard - self._heard_share) / ENDS

    def look(self, now: float, *, bound: bool) -> None:
        """Let the limit grow with time if it is `bound`: a request waits for it."""
        elapsed_s, self._looked_s = now - self._looked_s, now
        if self.tokens is None or not bound or elapsed_s <= 0.0:
            return
        stays = min(1.0, elapsed_s / self._stay_s) if self._stay_s > 0.0 else 1.0
        self._quiet_stays += stays
        self.tokens *= exp(GROWTH * stays * (1.0 + self._quiet_stays))

    def _is_late(self, own: _Silent, step_s: float, now: float) -> bool:
        """Tell whether the engine has kept a request waiting for another's end; learn its speed."""
        silent_s = now - own.sent_s
        speed = self._speed * exp((self._speed_s - now) / SPEED_MEMORY_S)
        if silent_s > 0.0:
            self._speed, self._speed_s = max(speed, own.fresh_tokens / silent_s), now
        if not speed or self._ended_s <= own.sent_s:
            return False
        due_s = LATE_S + LATE_STEPS * step_s + LATE_FACTOR * own.ahead_tokens / speed
        return silent_s - max(0.0, self._stalled_s - own.stalled_s) > due_s

    def _forget(self, request_id: str) -> None:
        gone = self._silent.pop(request_id)
        self._silent_prompt_tokens -= gone.prompt_tokens
        self._silent_kv_tokens -= gone.kv_tokens
