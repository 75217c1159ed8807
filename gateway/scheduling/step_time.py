"""The speed of a backend with continuous batching, learned from the tokens that it sends.

A decoding step reads the weights, computes one token for each running sequence, and reads the keys and values of all of
them. So its time is linear in the number of running sequences and in the KV tokens. The time per token of some tokens
of one request is an observation. Three things are learned, on three time scales:

- The first `WARM_UP` observations set the level: the median of observed over prior time. The prior's proportions stay.
- Then least squares with exponential forgetting finds how much of the time each part takes. Requests that run in
  parallel observe the same steps, so n of them count as one observation, called a round.
- A gain on the total follows changes within seconds, such as a throttled engine or a burst of prompts. The least
  squares take over lasting changes, and the gain returns to 1.

Errors are relative, and an error beyond `CLIP` counts as `CLIP`. So one stalled step moves the level by a few per cent.

The time for the prompts of other requests is not separated. It grows with the number of running sequences and is
learned with it. So `tpot_s` is the mean time that a request will observe at this load, not the best of the engine.

Source: Pope et al., arXiv 2211.05102, section 2 (decoding is bound by reading weights and KV); Huber, Robust Estimation
of a Location Parameter (1964), for the clipping.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, fields
from math import isfinite

from gateway.scheduling.least_squares import RecursiveLeastSquares

WARM_UP = 8
"""Number of first observations, whose median sets the level."""

CLIP = 0.5
"""Largest relative error; a larger one counts as this one."""

MEMORY = 500.0
"""Rounds after which the weight of an observation has faded to 1 / e."""

RIDGE = 0.1
"""Weight of the prior's proportions, in rounds. It is small, because the parts' shares of a step vary little."""

GAIN_OBSERVATIONS, GAIN_ROUNDS = 32.0, 4.0
"""The gain follows a change within this many observations plus this many rounds."""

PREFILL_WINDOW = 64
"""Number of latest first tokens that the prefill rate is learned from."""

PREFILL_QUANTILE = 0.25
"""Quantile of the observed rates that is the prefill rate. It is low, because TTFT includes queueing in the engine."""

PREFILL_PRIOR_TOKENS = 512
"""Weight of the prior of the prefill rate, in prompt tokens."""

SHORTEST_S, LONGEST_S = 1e-6, 3600.0
"""A time outside these bounds is ignored: tokens that a proxy held back arrive all at once."""

_MAX_RUNNING = 4096.0


@dataclass(frozen=True, slots=True)
class StepTimePrior:
    """The assumed speed of a backend before the first observation, in seconds.

    TPOT = `base_s` + `per_sequence_s` * running + `per_kv_token_s` * KV tokens; prefill = `per_prompt_token_s` * prompt
    tokens. After the first observations only the proportions matter.

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
                raise ValueError(f"{field.name}: {seconds} must be finite and not negative, and base_s positive")


class StepTimeModel:
    """Predicts the times of one backend, and learns from observed times.

    The numbers of running sequences and KV tokens are those on the backend at the time of the prediction or the
    observation. Impossible observations are ignored.

    Args:
        prior: the speed before the first observation.

    >>> model = StepTimeModel(StepTimePrior(base_s=0.010, per_sequence_s=1e-4, per_kv_token_s=1e-7))
    >>> round(model.tpot_s(running=50, kv_tokens=50_000), 4)
    0.02
    >>> model.learn_decode(0.04, running=50, kv_tokens=50_000)  # twice as slow as the prior, in all parts
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
        """Prediction over the prior's prediction, at the load of the last observation."""
        self._early: list[float] = []
        """Observed over prior time of the first `WARM_UP` observations, sorted."""
        self._observations = 0
        self._first_tokens: deque[tuple[float, int]] = deque()
        """Seconds per prompt token and the prompt's tokens, in the order of observation; `_rates` has them sorted."""
        self._rates: list[tuple[float, int]] = []
        self._base_s = prior.base_s
        self._per_sequence_s = prior.per_sequence_s
        self._per_kv_token_s = prior.per_kv_token_s
        self._per_prompt_token_s = prior.per_prompt_token_s

    @property
    def observations(self) -> int:
        """Number of decode observations so far."""
        return self._observations

    def tpot_s(self, running: float, kv_tokens: float) -> float:
        """Predict the mean seconds per output token with `running` sequences and `kv_tokens` KV tokens in use."""
        return self._base_s + self._per_sequence_s * running + self._per_kv_token_s * kv_tokens

    def prefill_s(self, prompt_tokens: float) -> float:
        """Predict the seconds that the prompt adds before the first token, without queueing."""
        return self._per_prompt_token_s * prompt_tokens

    def learn_decode(self, tpot_s: float, running: float, kv_tokens: float) -> None:
        """Learn from the mean seconds per token of some 16 tokens of one request, after its first token."""
        if not SHORTEST_S < tpot_s < LONGEST_S:
            return
        prior, fit, gain = self._prior, self._fit, self._gain
        base, sequences, kv = prior.base_s, prior.per_sequence_s * running, prior.per_kv_token_s * kv_tokens
        x, y, z = fit.coefficients
        fitted = x * base + y * sequences + z * kv
        side_by_side = min(max(1.0, running), _MAX_RUNNING)
        level = (x + y + z) / 3.0
        unit = level / fitted  # rows are shares of the time, with a sum of about 1 at any speed
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

    def learn_first_token(self, ttft_s: float, prompt_tokens: int, running: float, kv_tokens: float) -> None:
        """Learn from the time between dispatch and first token; `running` and `kv_tokens` are those at dispatch.

        The time beyond one decoding step is prefill, and perhaps queueing. The rate per prompt token is its quantile
        regression through the origin at `PREFILL_QUANTILE`. With one coefficient, that is the quantile of the rates,
        weighted by the tokens of the prompts. So a short prompt, which shows little, counts little.

        Source: Koenker & Bassett, Regression Quantiles (1978).
        """
        if not SHORTEST_S < ttft_s < LONGEST_S or prompt_tokens < 1:
            return
        observed = (max(0.0, ttft_s - self.tpot_s(running, kv_tokens)) / prompt_tokens, prompt_tokens)
        if len(self._first_tokens) == PREFILL_WINDOW:
            del self._rates[bisect_left(self._rates, self._first_tokens.popleft())]
        self._first_tokens.append(observed)
        insort(self._rates, observed)
        ranked = self._rates.copy()
        insort(ranked, (self._level * self._prior.per_prompt_token_s, PREFILL_PRIOR_TOKENS))
        slower = sum(tokens for _, tokens in ranked) * (1.0 - PREFILL_QUANTILE)
        while slower > 0.0:
            rate, tokens = ranked.pop()
            slower -= tokens
        self._per_prompt_token_s = rate
