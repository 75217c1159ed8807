"""How long a backend with continuous batching takes: learned from the tokens that it sends, request by request.

A decoding step reads the weights, computes one token for each running sequence and reads all their keys and values, so
its time is linear in the running count and in the KV tokens. Every request under way shows it: the time per token of
some tokens is an observation. Three things are learned from them, on three time scales:

- The first `WARM_UP` set the level: their median, over what the prior says. Nothing else of the prior changes.
- Least squares with exponential forgetting then finds how much of the time each part takes. Requests that run side by
  side see the same steps, so n of them count as one observation: a *round*.
- A gain on the whole follows what changes within seconds: an engine that is throttled, or computes many prompts just
  now. What lasts, the least squares take over, and the gain returns to 1.

Errors are relative, and one beyond `CLIP` counts as `CLIP`: one stalled step moves the level by a few per cent of it.

What the prompts of other requests take of a step is not told apart: it comes with the running count, in proportion, and
is learned with it. So `tpot_s` is the mean of what a request will see at this load, not the best that the engine can.

Source: Pope et al., arXiv 2211.05102, section 2 (decoding is bound by reading weights and KV); Huber, Robust Estimation
of a Location Parameter (1964), for the clipping.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, fields
from math import isfinite

from gateway.scheduling.least_squares import RecursiveLeastSquares

WARM_UP = 8
"""Observations whose median sets the level."""

CLIP = 0.5
"""Largest relative error that is learned from as it is."""

MEMORY = 500.0
"""Rounds after which an observation has faded."""

RIDGE = 0.1
"""Rounds that the prior's proportions weigh as much as. Few: the parts' shares of a step vary little."""

GAIN_OBSERVATIONS, GAIN_ROUNDS = 32.0, 4.0
"""The gain follows within so many observations and so many rounds, summed."""

PREFILL_WINDOW = 64
"""First tokens that the prefill rate is learned from."""

PREFILL_QUANTILE = 0.25
"""A TTFT contains whatever queueing there was in the engine: the rate is the one that so many are faster than."""

PREFILL_PRIOR_TOKENS = 512
"""Prompt tokens that the prior of the prefill rate weighs as much as."""

SHORTEST_S, LONGEST_S = 1e-6, 3600.0
"""A time beyond is no engine's: tokens that were held up on the way come all at once."""

_MAX_RUNNING = 4096.0


@dataclass(frozen=True, slots=True)
class StepTimePrior:
    """What a backend is taken for before it has shown anything. In seconds.

    TPOT = `base_s` + `per_sequence_s` * running + `per_kv_token_s` * KV tokens; prefill = `per_prompt_token_s` * prompt
    tokens. Only the proportions matter once the first answers are under way.

    The default is Llama-3-8B in bf16 on an A100, 80 % of the peak bandwidth (2039 GB/s) and half of the peak FLOP/s
    (312 T) achieved. base: 16.06 GB of weights read once and 2 ms of overhead; per sequence and per prompt token: 2
    FLOP for each of 8.03e9 parameters; per KV token: 131072 bytes read once.

    Raises:
        ValueError: `base_s` is not positive, or another is negative, or one is not finite.
    """

    base_s: float = 0.01185
    per_sequence_s: float = 1.03e-4
    per_kv_token_s: float = 8.04e-8
    per_prompt_token_s: float = 1.03e-4

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if not isfinite(seconds) or seconds < 0.0 or (field.name == "base_s" and not seconds):
                raise ValueError(f"{field.name}: {seconds} is not a time that a step can take")


class StepTimeModel:
    """Predicts the times of one backend, and learns from the times that it shows.

    Counts of sequences and of tokens are those on the backend, not negative, at about the time of the prediction or of
    the observation. Observations that no engine can make are passed over.

    Args:
        prior: what to start from.

    >>> model = StepTimeModel(StepTimePrior(base_s=0.010, per_sequence_s=1e-4, per_kv_token_s=1e-7))
    >>> round(model.tpot_s(running=50, kv_tokens=50_000), 4)
    0.02
    >>> model.note_decode(0.04, running=50, kv_tokens=50_000)  # twice as slow: all of it, for all that is known
    >>> round(model.tpot_s(running=50, kv_tokens=50_000), 4), round(model.tpot_s(running=0, kv_tokens=0), 4)
    (0.04, 0.02)
    """

    __slots__ = (
        "_base_s",
        "_early",
        "_first_tokens",
        "_fit",
        "_gain",
        "_level",
        "_observations",
        "_per_kv_token_s",
        "_per_prompt_token_s",
        "_per_sequence_s",
        "_prior",
        "_rates",
    )

    def __init__(self, prior: StepTimePrior = StepTimePrior()) -> None:
        self._prior = prior
        self._fit = RecursiveLeastSquares(memory=MEMORY, ridge=RIDGE)
        self._gain = 1.0
        self._level = 1.0
        """Prediction over the prior's, at the load of the last observation."""
        self._early: list[float] = []
        """Observation over prior of the first `WARM_UP`, sorted."""
        self._observations = 0
        self._first_tokens: deque[tuple[float, int]] = deque()
        """Seconds per prompt token, and the prompt's tokens; in the order of observation. In `_rates` sorted."""
        self._rates: list[tuple[float, int]] = []
        self._base_s = prior.base_s
        self._per_sequence_s = prior.per_sequence_s
        self._per_kv_token_s = prior.per_kv_token_s
        self._per_prompt_token_s = prior.per_prompt_token_s

    @property
    def observations(self) -> int:
        """Decode observations that were learned from."""
        return self._observations

    def tpot_s(self, running: float, kv_tokens: float) -> float:
        """Predict the mean time per output token with so many sequences running, on so many KV tokens in all."""
        return self._base_s + self._per_sequence_s * running + self._per_kv_token_s * kv_tokens

    def prefill_s(self, prompt_tokens: float) -> float:
        """Predict the time that the prompt adds before the first token, without any queueing."""
        return self._per_prompt_token_s * prompt_tokens

    def service_s(self, prompt_tokens: float, output_tokens: float, running: float, kv_tokens: float) -> float:
        """Predict the time from dispatch to the last token, at a load that stays: prefill + output * TPOT."""
        return self.prefill_s(prompt_tokens) + output_tokens * self.tpot_s(running, kv_tokens)

    def note_decode(self, tpot_s: float, running: float, kv_tokens: float) -> None:
        """Learn from the mean time per token of one request's tokens, some 16 of them, after its first."""
        if not SHORTEST_S < tpot_s < LONGEST_S:
            return
        prior, fit, gain = self._prior, self._fit, self._gain
        base, sequences, kv = prior.base_s, prior.per_sequence_s * running, prior.per_kv_token_s * kv_tokens
        x, y, z = fit.coefficients
        fitted = x * base + y * sequences + z * kv
        side_by_side = min(max(1.0, running), _MAX_RUNNING)
        level = (x + y + z) / 3.0
        unit = level / fitted  # rows are shares of the time: about 1 in sum however fast the engine is
        self._observations += 1
        if self._observations <= WARM_UP:
            insort(self._early, tpot_s / fitted)
            gain = self._early[(len(self._early) - 1) // 2]
            target = level
        else:
            error = min(max(-CLIP, tpot_s / (gain * fitted) - 1.0), CLIP)
            target = level * gain * (1.0 + error)
            gain *= 1.0 + error / (GAIN_OBSERVATIONS + GAIN_ROUNDS * side_by_side)
        fit.learn(unit * base, unit * sequences, unit * kv, target=target, weight=1.0 / side_by_side)
        if self._observations == WARM_UP:
            fit.rescale(gain)
            gain = 1.0
        self._gain = gain
        x, y, z = fit.coefficients
        self._base_s = gain * x * base
        self._per_sequence_s = gain * y * prior.per_sequence_s
        self._per_kv_token_s = gain * z * prior.per_kv_token_s
        self._level = gain * (x * base + y * sequences + z * kv) / (base + sequences + kv)

    def note_first_token(self, ttft_s: float, prompt_tokens: int, running: float, kv_tokens: float) -> None:
        """Learn from the time between dispatch and first token; `running` and `kv_tokens` are those at dispatch.

        What is beyond one decoding step is prefill, and maybe queueing. The rate per prompt token is the quantile
        regression of it, through the origin, at `PREFILL_QUANTILE`: with one coefficient that is the quantile of the
        rates, weighted by the prompts' tokens, so that short prompts, which tell little of it, count little.

        Source: Koenker & Bassett, Regression Quantiles (1978).
        """
        if not SHORTEST_S < ttft_s < LONGEST_S or prompt_tokens < 1:
            return
        seen = (max(0.0, ttft_s - self.tpot_s(running, kv_tokens)) / prompt_tokens, prompt_tokens)
        if len(self._first_tokens) == PREFILL_WINDOW:
            del self._rates[bisect_left(self._rates, self._first_tokens.popleft())]
        self._first_tokens.append(seen)
        insort(self._rates, seen)
        ranked = self._rates.copy()
        insort(ranked, (self._level * self._prior.per_prompt_token_s, PREFILL_PRIOR_TOKENS))
        slower = sum(tokens for _, tokens in ranked) * (1.0 - PREFILL_QUANTILE)
        while slower > 0.0:
            rate, tokens = ranked.pop()
            slower -= tokens
        self._per_prompt_token_s = rate
