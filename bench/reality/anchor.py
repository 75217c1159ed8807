"""Derives an engine's steps from the tokens that its clients receive.

A running sequence gets one token per step. So the tokens of one stream, the anchor, count the steps. The tokens that
other streams receive in the same time show which sequences shared these steps, and a first token shows that a prompt
was computed.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.reality.fit import Sample


@dataclass(slots=True)
class StreamLog:
    """Arrival times of one stream's tokens: `counts[i]` tokens had arrived at `times_s[i]`; both rise."""

    prompt_tokens: int
    times_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, time_s: float, count: int) -> None:
        """Add a count."""
        self.times_s.append(time_s)
        self.counts.append(count)

    def tokens_at(self, time_s: float) -> int:
        """Return how many tokens had arrived at this time."""
        index = bisect_right(self.times_s, time_s)
        return self.counts[index - 1] if index else 0


def samples_of(anchor: StreamLog, others: Sequence[StreamLog], *, steps: int) -> Iterator[Sample]:
    """Divide the anchor's time into segments of at least `steps` steps, and yield one sample for each.

    The last segment is left out, because the anchor may end within it.
    """
    begin = 0
    for end in range(1, len(anchor.times_s)):
        if anchor.counts[end] - anchor.counts[begin] < steps:
            continue
        yield _sample(anchor, others, begin, end)
        begin = end


def _sample(anchor: StreamLog, others: Sequence[StreamLog], begin: int, end: int) -> Sample:
    running = kv_tokens = prefill_tokens = 0
    start_s, end_s = anchor.times_s[begin], anchor.times_s[end]
    for log in (anchor, *others):
        before, after = log.tokens_at(start_s), log.tokens_at(end_s)
        running += after - before
        kv_tokens += kv_read(log.prompt_tokens, before, after)
        if before == 0 < after:
            prefill_tokens += log.prompt_tokens
    steps = anchor.counts[end] - anchor.counts[begin]
    return Sample(steps, running, kv_tokens, prefill_tokens, end_s - start_s)


def kv_read(prompt_tokens: int, before: int, after: int) -> int:
    """Return the KV entries read for the tokens `before + 1` to `after`: token n reads the prompt and n - 1 tokens.

    >>> kv_read(10, 0, 3)
    33
    """
    return (after - before) * prompt_tokens + (after * (after - 1) - before * (before - 1)) // 2
