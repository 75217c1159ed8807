"""`python -m bench scheduling`: CPU time of the scheduling core's steps.

The load is generated: a queue of requests with lognormal lengths, and engines that are full. Each answer that finishes
makes room for the next one. Times are CPU time of the thread.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, cycle, islice
from random import Random
from statistics import NormalDist, median, quantiles
from time import thread_time
from typing import Annotated, Any

import typer

from bench.prediction.rows import print_table
from gateway.cli.options import JsonOption
from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.scheduling.messages import (
    BackendObserved,
    BackendState,
    Dispatch,
    Finished,
    Message,
    Progress,
    QueueLimits,
    Request,
    Submit,
    Tick,
)
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler

KV_TOKENS = 100_000
BLOCK_TOKENS = 16
IN_FLIGHT = 256
PROGRESS_TOKENS = 16
CALLS = 1000
WARM_UP = 1000
MODEL = "model"
_Z = [NormalDist().inv_cdf(level) for level in LEVELS]


class Requests:
    """Makes different requests: lognormal lengths around lognormal medians."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = Random(seed)
        self._numbers = count()

    def one(self) -> Request:
        """Make the next one."""
        middle, prompt = self._chance.lognormvariate(5.3, 1.0), self._chance.lognormvariate(5.0, 1.0)
        length = LengthQuantiles.of(tuple(middle * 2.0**z for z in _Z), cap=4096)
        number = next(self._numbers)
        return Request(str(number), MODEL, 1 + round(prompt), length, 1e-3 * number, 1e9)


def command(
    policy: Annotated[str, typer.Option(help="Policy of the queue.")] = "hrrn",
    waiting: Annotated[int, typer.Option(help="Requests in the queue.")] = 100_000,
    backends: Annotated[int, typer.Option(help="Backends.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure the CPU time of the scheduling core's steps."""
    print_table(rows(policy, waiting, backends), as_json=as_json)


def rows(policy: str, waiting: int, backends: int) -> list[dict[str, Any]]:
    """Return the table."""
    crowd = Crowd(policy, waiting, backends)
    beside = f"{waiting} waiting, {crowd.scheduler.running} running on {backends} backends"
    return [
        row(f"each that goes out when answers end ({beside})", crowd.ended(), crowd.step, per=crowd.just_sent),
        row("arrival that has to wait", crowd.arrivals(), crowd.step),
        row(f"answer that grew by {PROGRESS_TOKENS} tokens", crowd.growth(), crowd.step),
        row("look at one backend", crowd.looks(), crowd.step),
        row("decision that finds no room", ([Tick()] for _ in count()), crowd.step),
        row(f"admission test, {IN_FLIGHT} in flight", *admission(IN_FLIGHT)),
        row("admission test, 8 in flight", *admission(8)),
    ]


class Crowd:
    """Full engines and a queue before them."""

    def __init__(self, policy: str, waiting: int, backends: int) -> None:
        self.scheduler = Scheduler(policy_named(policy), QueueLimits(10**9, 10**15))
        self._sent = 0
        self._now = 0.0
        self._requests = Requests()
        self._tokens: dict[str, int] = {}
        self._states = [
            BackendState(
                f"gpu-{number}", frozenset({MODEL}), True, KV_TOKENS, kv_used_tokens=0, kv_block_tokens=BLOCK_TOKENS
            )
            for number in range(backends)
        ]
        self.step([BackendObserved(state) for state in self._states])
        while self.scheduler.waiting < waiting:
            self.step([Submit(self._requests.one()) for _ in range(min(1000, waiting))])
        chance = Random(2)
        self.just_sent()
        for request_id in list(self._tokens):
            self._tokens[request_id] = PROGRESS_TOKENS * chance.randint(0, 10)
            self.step([Progress(request_id, self._grown(request_id))])
        ends = self.ended()
        while self._sent < WARM_UP:  # the engines have more than they would by now, and have to become emptier
            self.step(next(ends))
        self.just_sent()

    def step(self, messages: Iterable[Message]) -> None:
        """Step on, a millisecond later."""
        self._now += 1e-3
        for action in self.scheduler.step(messages, self._now):
            if isinstance(action, Dispatch):
                self._sent += 1
                self._tokens[action.id] = 0

    def just_sent(self) -> int:
        """How many were sent since this was last asked."""
        sent, self._sent = self._sent, 0
        return sent

    def ended(self) -> Iterator[list[Message]]:
        """Yield ends of answers, the oldest first."""
        while True:
            request_id = next(iter(self._tokens))
            self._tokens.pop(request_id)
            yield [Finished(request_id, 200)]

    def arrivals(self) -> Iterable[list[Message]]:
        """Yield arrivals."""
        while True:
            yield [Submit(self._requests.one())]

    def growth(self) -> Iterable[list[Message]]:
        """Yield growth of each running answer in turn."""
        for request_id in cycle(list(self._tokens)):
            yield [Progress(request_id, self._grown(request_id))]

    def _grown(self, request_id: str) -> int:
        self._tokens[request_id] += PROGRESS_TOKENS
        return self._tokens[request_id]

    def looks(self) -> Iterable[list[Message]]:
        """Yield looks at each backend in turn, each of which shows what the ledger has."""
        for number in count():
            state = self._states[number % len(self._states)]
            status = self.scheduler.backend_status(state.name)
            used = status.kv_held_tokens + number % 7 if status else 0
            yield [
                BackendObserved(
                    BackendState(
                        state.name, state.models, True, KV_TOKENS, kv_used_tokens=used, kv_block_tokens=BLOCK_TOKENS
                    )
                )
            ]


def admission(in_flight: int) -> tuple[Iterable[Request], Callable[[Request], object]]:
    """Return candidates, and the test of one on a backend that has so many requests under way."""
    requests, chance, ledger = Requests(), Random(1), KvLedger(BLOCK_TOKENS)
    for request in (requests.one() for _ in range(in_flight)):
        ledger.admit(request, request.length, ledger.forecast(request, request.length))
        ledger.grow(request.id, chance.randint(0, 300))

    def test(candidate: Request) -> bool:
        return ledger.has_room(ledger.forecast(candidate, candidate.length), KV_TOKENS)

    return (requests.one() for _ in count()), test


def row(
    what: str, arguments: Iterable[Any], call: Callable[[Any], object], per: Callable[[], int] = lambda: 1
) -> dict[str, Any]:
    """Time calls, in µs for each of what `per` says that a call did; those that did nothing are left out."""
    times = []
    for argument in islice(arguments, CALLS):
        start = thread_time()
        call(argument)
        seconds = thread_time() - start
        if done := per():
            times.append(1e6 * seconds / done)
    low, middle, high = quantiles(times, n=100)[9], median(times), quantiles(times, n=100)[98]
    return {"what": what, "n": len(times), "p10_us": low, "p50_us": middle, "p99_us": high}
