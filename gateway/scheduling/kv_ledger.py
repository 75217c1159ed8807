"""How much KV memory a backend's requests will need at their peak.

An engine admits a request when its prompt fits *now*; the answers then grow until memory runs out and work is thrown
away. The ledger asks the future instead: sequences end one after the other, the longest last, and memory peaks just
before some one of them ends.

Source: Past-Future scheduler, arXiv 2507.10150.
"""

from bisect import insort
from dataclasses import dataclass, field

from gateway.scheduling.messages import Request

PLANNING_LEVEL = 0.75
"""The quantile of its remaining length that a request is planned with: near the mean where lengths are lognormal and
spread widely (for sigma = 1.35 the mean is the 0.75-quantile), and means are what adds up over a batch."""


@dataclass(slots=True, order=True)
class _Entry:
    """One running request; sorts by what is still to come, longest first."""

    minus_remaining: float
    id: str
    request: Request = field(compare=False)
    kv_tokens: int = field(compare=False)
    """Held now, over all its sequences."""


@dataclass(slots=True)
class KvLedger:
    """KV tokens that one backend's running requests hold and will hold."""

    block_tokens: int = 1
    _entries: list[_Entry] = field(default_factory=list)
    _by_id: dict[str, _Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    @property
    def held_tokens(self) -> int:
        """KV tokens held now, as far as the tokens seen tell."""
        return sum(entry.kv_tokens for entry in self._entries)

    def peak_tokens(self, candidate: Request | None = None) -> float:
        """Predict the peak of KV tokens over the future, with `candidate` if it were admitted now.

        For k_i tokens held, w_i sequences growing and r_i tokens still to come, sorted by r descending:
        max over j of (sum over i <= j of k_i) + r_j * (sum over i <= j of w_i).
        """
        entries = self._entries
        if candidate is not None:
            entries = list(entries)
            insort(entries, self._entry(candidate, output_tokens=0))
        peak = held = 0.0
        sequences = 0
        for entry in entries:
            held += entry.kv_tokens
            sequences += entry.request.sequences
            peak = max(peak, held - entry.minus_remaining * sequences)
        return peak

    def admit(self, request: Request) -> None:
        """Enter a request that is sent to the backend.

        Raises:
            ValueError: it is entered already.
        """
        if request.id in self._by_id:
            raise ValueError(f"request {request.id} is in the ledger already")
        self._insert(self._entry(request, output_tokens=0))

    def grow(self, request_id: str, output_tokens: int) -> None:
        """Note that a request has produced `output_tokens` by now; an unknown one is none of ours any more."""
        if request_id in self._by_id:
            self._insert(self._entry(self._remove(request_id), output_tokens))

    def release(self, request_id: str) -> None:
        """Take out a request that is over; one that is not in is out already."""
        if request_id in self._by_id:
            self._remove(request_id)

    def _entry(self, request: Request, output_tokens: int) -> _Entry:
        per_sequence = output_tokens // request.sequences
        remaining = request.length.remaining(per_sequence, PLANNING_LEVEL)
        held = self._in_blocks(request.prompt_tokens) + output_tokens
        return _Entry(-remaining, request.id, request, held)

    def _in_blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens) * self.block_tokens

    def _insert(self, entry: _Entry) -> None:
        insort(self._entries, entry)
        self._by_id[entry.id] = entry

    def _remove(self, request_id: str) -> Request:
        entry = self._by_id.pop(request_id)
        self._entries.remove(entry)
        return entry.request
