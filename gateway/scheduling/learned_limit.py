"""How many requests an engine can have at once, learned from how it behaves, where it tells nothing of itself.

An engine with room answers a new request's first token soon; one without lets it wait behind the others, or refuses it.
So the limit grows a little while first tokens stay near the quickest known and the limit is made use of, shrinks in
proportion as they come later, and falls at once under what a refusal shows to be too many. The quickest is known from
requests that found the engine nearly idle, as the first ones do. An engine that is full from the first request on, of
others' work, is taken for a slow one.

Sources: the additive-increase, multiplicative-decrease rule of Chiu and Jain (1989); its use on latencies instead of
losses: TCP Vegas (Brakmo, Peterson 1995), and Netflix's concurrency-limits (Vegas and Gradient2 limits).
"""

from math import inf, log2

START = 8.0
LEAST = 1.0
MOST = 4096.0

MIN_SAMPLES = 8
"""First tokens that a window has at least: one alone says more of its prompt than of the engine."""

TOLERANCE = 2.0
"""First tokens may be so many times later than the quickest: a batch that fills is slower by itself."""

FLOOR_S = 0.02
"""Below this a difference is no queue's: a scheduler's turn, a network's."""

REFUSAL_SHARE = 0.9
"""Of the requests under which an engine refused one more."""

IDLE_SHARE = 0.25
IDLE_MOST = 8
"""Of the limit, and at most: a request that finds fewer running has the engine nearly to itself."""

IDLE_WEIGHT = 0.25
"""Of one such request's first token in their running mean."""

WORST_SHARE = 0.5
"""Of the limit: the most that one window takes away."""

DRIFT = 1.02
"""By which the quickest is forgotten a window: an engine that became slower is not a full one for ever."""


class LearnedLimit:
    """The greatest number of requests that an engine gets at once.

    Args:
        start: before anything is known.
        most: never more.
    """

    __slots__ = ("_idle_s", "_limit", "_most", "_most_running", "_quickest_s", "_samples", "_sum_s")

    def __init__(self, start: float = START, most: float = MOST) -> None:
        self._limit = min(start, most)
        self._most = most
        self._quickest_s = inf
        self._idle_s = inf
        self._samples = 0
        self._sum_s = 0.0
        self._most_running = 0

    @property
    def limit(self) -> int:
        """Requests, at least 1."""
        return int(self._limit)

    def note(self, running: int, ttft_s: float | None, *, full: bool = False) -> None:
        """Take in what became of one request.

        Args:
            running: requests that the engine had of us when it got this one, itself not counted.
            ttft_s: seconds to its first token; of an answer in one piece, its time a token. None where there was none.
            full: the engine refused it for want of room.

        >>> limit = LearnedLimit(start=100)
        >>> limit.note(50, None, full=True)
        >>> limit.limit
        45
        """
        if full:
            self._limit = max(LEAST, min(self._limit, REFUSAL_SHARE * running))
            self._begin_window()
        elif ttft_s is not None:
            self._note_idle(running, ttft_s)
            self._samples += 1
            self._sum_s += ttft_s
            self._most_running = max(self._most_running, running + 1)
            if self._samples >= max(MIN_SAMPLES, self._limit):
                self._end_window()

    def _note_idle(self, running: int, ttft_s: float) -> None:
        """Keep the mean time of requests that found the engine nearly idle."""
        if running < max(1.0, min(IDLE_MOST, IDLE_SHARE * self._limit)):
            known = self._idle_s != inf
            self._idle_s = self._idle_s + IDLE_WEIGHT * (ttft_s - self._idle_s) if known else ttft_s

    def _end_window(self) -> None:
        """Move the limit by what a limit's worth of requests has shown."""
        mean_s = max(FLOOR_S, self._sum_s / self._samples)
        self._quickest_s = min(DRIFT * self._quickest_s, mean_s, max(FLOOR_S, self._idle_s))
        share = TOLERANCE * self._quickest_s / mean_s
        if share < 1.0:
            self._limit = max(LEAST, self._limit * max(WORST_SHARE, share))
        elif self._most_running >= self._limit / 2:
            self._limit = min(self._most, self._limit + max(1.0, log2(self._limit)))
        self._begin_window()

    def _begin_window(self) -> None:
        self._samples = 0
        self._sum_s = 0.0
        self._most_running = 0
        self._idle_s = inf
