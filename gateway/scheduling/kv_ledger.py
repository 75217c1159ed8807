"""The KV ledger: how much memory the requests on a backend hold now, and will hold at each step ahead.

An engine admits a request when its prompt fits now. Then the answers grow until memory runs out, and the engine
preempts. The ledger tests the future peak instead. All sequences of a continuous batch grow by one token per step. So
for some steps ahead the ledger keeps the mean and the variance of the memory in use, summed over all requests; each
counts with the probability that it is still running then. Admission, growth and release change only these sums, so a
test costs the same with five running requests as with five hundred.

Source: Past-Future scheduler, arXiv 2507.10150, for the peak of the future. There a request has one predicted length.
Here it has a distribution, conditioned on the tokens that it already has.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request

Floats = NDArray[np.float64]

AHEAD: Floats = np.unique(np.concatenate([[0.0], np.geomspace(8.0, 65536.0, 80).round()]))
"""Steps ahead for which memory is predicted, (n_steps,); each is some 12 % further than the one before."""

CAUTION = 0.5
"""The plan is the mean of the memory in use plus this many standard deviations."""

REFORECAST = 8
"""A request is forecast again when it has grown by 1 / REFORECAST of its tokens."""

MIN_GROWTH_TOKENS = 16
"""A request is not forecast again before it has grown by this many tokens."""

_GONE = 0.01
"""A request is left out of the steps where it is still running with a lower probability than this."""


class Curve(NamedTuple):
    """Mean and variance of a request's KV tokens at the first n steps of `AHEAD`, (n,) each; 0 at later steps."""

    mean: Floats
    variance: Floats


@dataclass(slots=True)
class _Entry:
    """A running request. It holds `kv_tokens` now, over all its sequences."""

    request: Request
    length: LengthQuantiles
    curve: Curve
    kv_tokens: int
    output_tokens: int = 0
    reforecast_at: int = MIN_GROWTH_TOKENS


@dataclass(slots=True)
class KvLedger:
    """KV tokens that the requests on one backend hold and will hold.

    Attributes:
        block_tokens: the engine allocates memory in blocks of this many tokens.
        reserving: the engine holds memory for the prompt and `max_tokens` from the start.
        held_tokens: KV tokens in use now.
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
        """Return the highest KV use at any step ahead, with the candidate as if it were admitted now.

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
        """Return whether the KV use with the candidate stays within the budget at all steps that the candidate runs."""
        n = len(candidate.mean)
        spare = budget_tokens - self._mean[:n] - candidate.mean
        if spare.min() < 0.0:
            return False
        return bool((spare * spare >= CAUTION**2 * (self._variance[:n] + candidate.variance)).all())

    def forecast(self, request: Request, length: LengthQuantiles, output_tokens: int = 0) -> Curve:
        """Return the KV tokens that a request will hold at each step of `AHEAD`, while it is likely to run."""
        generated = output_tokens / request.sequences
        running = length.still_running(generated, AHEAD)
        running = running[: int(np.count_nonzero(running >= _GONE))]
        growth = 0 if self.reserving else request.sequences
        size = self._held(request, output_tokens) + growth * AHEAD[: len(running)]
        # The last step is the one before the end. There the request is largest.
        end = length.remaining(int(generated), 1.0 - _GONE)
        size[-1] = max(size[-1], size[0] + growth * min(end, AHEAD[min(len(running), len(AHEAD) - 1)]))
        mean = size * running
        return Curve(mean, mean * size * (1.0 - running))

    def admit(self, request: Request, length: LengthQuantiles, curve: Curve) -> None:
        """Enter a request that is dispatched to the backend, with the forecast that it was tested with.

        Raises:
            ValueError: the request is already in the ledger.
        """
        if request.id in self._entries:
            raise ValueError(f"request {request.id} is already in the ledger")
        entry = _Entry(request, length, curve, self._held(request, 0))
        self._entries[request.id] = entry
        self.held_tokens += entry.kv_tokens
        self._add(curve, 1.0)

    def grow(self, request_id: str, output_tokens: int) -> None:
        """Set the tokens that a request has generated by now. A request that is not in the ledger is ignored."""
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
        elif (outgrown := kv_tokens - entry.curve.mean[0]) > 0.0:  # memory in use now counts, even beyond the forecast
            entry.curve.mean[0] += outgrown
            self._mean[0] += outgrown

    def release(self, request_id: str) -> None:
        """Remove a request that is over. A request that is not in the ledger is ignored."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        self.held_tokens -= entry.kv_tokens
        if self._entries:
            self._add(entry.curve, -1.0)
        else:  # also clears rounding errors
            self._mean, self._variance = np.zeros_like(AHEAD), np.zeros_like(AHEAD)

    def output_tokens(self, request_id: str) -> int:
        """Tokens that a running request has produced, as far as it was told."""
        return self._entries[request_id].output_tokens

    def _held(self, request: Request, output_tokens: int) -> int:
        """Return the KV tokens of a request. Each sequence allocates whole blocks for its own part."""
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
