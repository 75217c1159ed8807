"""For every engine: a limit is learned from first tokens only, and is never below what is known to fit."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.capacity import MARGIN, LearnedCapacity

STEP_S = 0.02

kinds = st.sampled_from(["send", "begin", "end", "grow", "progress", "scrape", "keep_waiting", "keep_waiting"])
moves = st.lists(st.tuples(kinds, st.integers(0, 10**6), st.floats(0.0, 0.5)), max_size=60)


class ObservedEngine:
    """The requests in the engine in the order of their dispatch, and the capacity that is learned from it."""

    def __init__(self):
        self.learned = LearnedCapacity()
        self.now, self.sent, self.most_held = 0.0, 0, 0
        self.kv_tokens = {}
        self.silent = set()

    def work(self):
        """Show the engine's prefill rate."""
        name = self.send(399)
        self.now += 0.01
        self.begin(0, name)

    def move(self, kind, number, elapsed_s):
        self.now += elapsed_s
        getattr(self, kind)(number)

    def send(self, number):
        name, prompt = f"r{self.sent}", number % 400 + 1
        self.sent += 1
        self.kv_tokens[name] = prompt
        self.silent.add(name)
        self.learned.on_dispatch(name, prompt, prompt, self.now)
        self.most_held = max(self.most_held, sum(self.kv_tokens.values()))
        return name

    def begin(self, number, name=None):
        name = name or self.one_of(sorted(self.silent), number)
        if name is None:
            return
        self.silent.remove(name)
        self.learned.on_first_token(name, sum(self.kv_tokens.values()), STEP_S, self.now)
        if self.learned.tokens is not None:
            assert self.learned.tokens >= MARGIN * self.known_to_fit() - 1e-6

    def known_to_fit(self):
        """Return the requests sent no later than the last one that has started."""
        names = list(self.kv_tokens)
        last = max(i for i, name in enumerate(names) if name not in self.silent)
        return sum(self.kv_tokens[name] for name in names[: last + 1])

    def end(self, number):
        if name := self.one_of(list(self.kv_tokens), number):
            del self.kv_tokens[name]
            self.silent.discard(name)
            self.learned.on_finish(name, None if number % 2 else 1.0, self.now, streamed=number % 3 > 0)

    def grow(self, number):
        if name := self.one_of(sorted(self.silent), number):
            self.kv_tokens[name] += number % 50
            self.learned.on_wait(name, self.kv_tokens[name])
            self.most_held = max(self.most_held, sum(self.kv_tokens.values()))

    def progress(self, number):
        self.learned.on_progress(STEP_S * (1 + number % 3), self.now)

    def scrape(self, number):
        self.learned.on_scrape(self.now, bound=False)

    def keep_waiting(self, number):
        """Start a request when another ends, long after it was sent."""
        name = self.send(number)
        for _ in range(20):
            self.now += 0.25
            self.progress(0)
        if begun := self.one_of([other for other in self.kv_tokens if other not in self.silent], number):
            del self.kv_tokens[begun]
            self.learned.on_finish(begun, 1.0, self.now, streamed=True)
        self.begin(number, name)

    @staticmethod
    def one_of(names, number):
        return names[number % len(names)] if names else None


@given(moves)
def test_limit_is_between_what_is_known_to_fit_and_the_highest_use(moves):
    observed = ObservedEngine()
    observed.work()
    for move in moves:
        observed.move(*move)
        if observed.learned.tokens is not None:
            assert observed.learned.tokens <= MARGIN * observed.most_held + 1e-6


@given(moves)
def test_nothing_is_learned_without_a_first_token(moves):
    observed = ObservedEngine()
    for kind, number, elapsed_s in moves:
        observed.move({"begin": "send", "keep_waiting": "end"}.get(kind, kind), number, elapsed_s)
    assert observed.learned.tokens is None
