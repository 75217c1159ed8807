"""What an engine's metrics page tells beside its present state: totals and distributions since the start."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0)


class Histogram:
    """Counts of values by upper bound, as Prometheus has them."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield each bound as text with the number of values up to it, '+Inf' last."""
        below = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            below += count
            yield bound, below


class Observations:
    """Totals and distributions of the requests that the engine has served. Times are real seconds."""

    def __init__(self) -> None:
        self.submitted = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.rejections = 0
        self.finished: Counter[str] = Counter()
        self.ttft_s = Histogram(SECONDS)
        self.e2e_s = Histogram(SECONDS)
        self.request_prompt_tokens = Histogram(TOKENS)
        self.request_generation_tokens = Histogram(TOKENS)

    def observe_first_token(self, prompt_tokens: int, ttft_s: float) -> None:
        """Note that a sequence's prompt is computed."""
        self.prompt_tokens += prompt_tokens
        self.ttft_s.observe(ttft_s)

    def observe_finish(self, reason: str, prompt_tokens: int, generation_tokens: int, e2e_s: float) -> None:
        """Note that a sequence is complete, or with the reason 'error', lost."""
        self.finished[reason] += 1
        self.e2e_s.observe(e2e_s)
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_generation_tokens.observe(generation_tokens)
