"""How much KV memory a backend's requests will need: not now, but at every point of their future.

An engine admits a request when its prompt fits *now*; the answers then grow until memory runs out and work is thrown
away. The ledger asks the future instead. All sequences of a continuous batch grow by one token a step, so a step is its
clock: for each of some steps ahead it keeps the mean and the variance of the memory in use then, summed over requests
that by then are still running or not. One request in or out, or some tokens on, changes the sums and nothing else, so a
test costs the same with five requests running as with five hundred.

Source: Past-Future scheduler, arXiv 2507.10150, for the peak of the future. There each request has one predicted
length; here it has a distribution, given that it is longer already than what was generated, and the peak a probability.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

Floats = NDArray[np.float64]

AHEAD: Floats = np.unique(np.concatenate([[0.0], np.geomspace(8.0, 65536.0, 80).round()]))
"""Steps ahead at which the future is looked at, (n_steps,): each some 12 % further than the one before it."""

CAUTION = 0.5
"""Standard deviations above the mean that the memory in use is planned with."""

REFORECAST = 8
"""A request is forecast anew when it has grown by one part in so many."""

MIN_GROWTH_TOKENS = 16
_GONE = 0.01
"""Under this probability of still running, a request is left out of the rest of the future."""


class Curve(NamedTuple):
    """Mean and variance of a request's KV tokens at each of the first steps of `AHEAD`, (n,) each; nothing later."""

    mean: Floats
    variance: Floats


@dataclass(slots=True)
class _Entry:
    """One running request; `kv_tokens` it holds now, over all its sequences."""

    request: Request
    length: LengthQuantiles
    curve: Curve
    kv_tokens: int
    output_tokens: int = 0
    reforecast_at: int = MIN_GROWTH_TOKENS


@dataclass(slots=True)
class KvLedger:
    """KV tokens that one backend's running requests hold and will hold.

    Args:
        block_tokens: what the engine rounds up to.
        reserving: the engine holds prompt and `max_tokens` from the start on.
    """

    block_tokens: int = 1
    reserving: bool = False
    held_tokens: int = 0
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _mean: Floats = field(default_factory=lambda: np.zeros_like(AHEAD))
    _variance: Floats = field(default_factory=lambda: np.zeros_like(AHEAD))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def peak_tokens(self, candidate: Curve | None = None) -> float:
        """Return the highest point of the future, with a candidate if it were admitted now.

        max over t of mean(t) + `CAUTION` * sqrt(variance(t)), t in `AHEAD`.
        """
        mean, variance = self._mean, self._variance
        if candidate is not None:
            n = len(candidate.mean)
            mean, variance = mean.copy(), variance.copy()
            mean[:n] += candidate.mean
            variance[:n] += candidate.variance
        return float(np.max(mean + CAUTION * np.sqrt(np.maximum(variance, 0.0))))

    def has_room(self, candidate: Curve, budget_tokens: float) -> bool:
        """Tell whether the future with the candidate stays within the budget, as long as the candidate runs."""
        n = len(candidate.mean)
        spare = budget_tokens - self._mean[:n] - candidate.mean
        if spare.min() < 0.0:
            return False
        return bool((spare * spare >= CAUTION**2 * (self._variance[:n] + candidate.variance)).all())

    def forecast(self, request: Request, length: LengthQuantiles, output_tokens: int = 0) -> Curve:
        """Return what a request will hold, at each step of `AHEAD` while it is likely still running."""
        generated = output_tokens / request.sequences
        running = length.still_running(generated, AHEAD)
        running = running[: int(np.count_nonzero(running >= _GONE))]
        growth = 0 if self.reserving else request.sequences
        size = self._held(request, output_tokens) + growth * AHEAD[: len(running)]
        # The last step is the one before the end, where it is largest.
        end = length.remaining(int(generated), 1.0 - _GONE)
        size[-1] = max(size[-1], size[0] + growth * min(end, AHEAD[min(len(running), len(AHEAD) - 1)]))
        mean = size * running
        return Curve(mean, mean * size * (1.0 - running))

    def admit(self, request: Request, length: LengthQuantiles, curve: Curve) -> None:
        """Enter a request that is sent to the backend, with the forecast that it was tested with.

        Raises:
            ValueError: it is entered already.
        """
        if request.id in self._entries:
            raise ValueError(f"request {request.id} is in the ledger already")
        entry = _Entry(request, length, curve, self._held(request, 0))
        self._entries[request.id] = entry
        self.held_tokens += entry.kv_tokens
        self._add(curve, 1.0)

    def grow(self, request_id: str, output_tokens: int) -> None:
        """Note that a request has produced `output_tokens` by now; an unknown one is none of ours any more."""
        entry = self._entries.get(request_id)
        if entry is None:
            return
        shrunk, entry.output_tokens = output_tokens < entry.output_tokens, output_tokens
        kv_tokens = self._held(entry.request, output_tokens)
        self.held_tokens += kv_tokens - entry.kv_tokens
        entry.kv_tokens = kv_tokens
        if output_tokens >= entry.reforecast_at or shrunk:
            entry.reforecast_at = output_tokens + max(MIN_GROWTH_TOKENS, output_tokens // REFORECAST)
            self._add(entry.curve, -1.0)
            entry.curve = self.forecast(entry.request, entry.length, output_tokens)
            self._add(entry.curve, 1.0)
        elif (outgrown := kv_tokens - entry.curve.mean[0]) > 0.0:  # what is held now counts, whatever was forecast
            entry.curve.mean[0] += outgrown
            self._mean[0] += outgrown

    def release(self, request_id: str) -> None:
        """Take out a request that is over; one that is not in is out already."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        self.held_tokens -= entry.kv_tokens
        if self._entries:
            self._add(entry.curve, -1.0)
        else:  # nothing is left, not even of rounding
            self._mean, self._variance = np.zeros_like(AHEAD), np.zeros_like(AHEAD)

    def output_tokens(self, request_id: str) -> int:
        """Tokens that a running request has produced, as far as it was told."""
        return self._entries[request_id].output_tokens

    def _held(self, request: Request, output_tokens: int) -> int:
        """KV tokens of one request, in whole blocks for each sequence's own part."""
        block = self.block_tokens
        if self.reserving and request.length.cap is not None:
            output_tokens = request.length.cap * request.sequences
        if request.sequences == 1:
            return -(-(request.prompt_tokens + output_tokens) // block) * block
        per_sequence = -(-output_tokens // request.sequences)
        return (-(-request.prompt_tokens // block) + request.sequences * -(-per_sequence // block)) * block

    def _add(self, curve: Curve, sign: float) -> None:
        n = len(curve.mean)
        self._mean[:n] += sign * curve.mean
        self._variance[:n] += sign * curve.variance
