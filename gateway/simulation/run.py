"""A discrete-event run: arrivals, steps of engines and looks at them, in the order of their times.

The core is stepped when a request arrives, gets its first token or ends, and at every look. How far the other answers
have come by then is told with it, at the gateway's own granularity of tokens: a step for that alone changes little and
is most of what a run would cost.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import inf

from backends.simulator.engine import SequenceId
from gateway.errors import StarvedError
from gateway.scheduling.messages import (
    Action,
    BackendObserved,
    Dispatch,
    Drop,
    Finished,
    Message,
    OutOfMemory,
    Progress,
    Request,
    Submit,
    Tick,
)
from gateway.simulation.core import Core
from gateway.simulation.fleet import MODEL, SimulatedBackend
from gateway.simulation.lengths import Lengths
from gateway.simulation.scrapes import ScrapeModel
from gateway.simulation.workload import Arrival

QUEUE_TIMEOUT_S = 1e9

PATIENCE = 100
"""Looks at idle engines after which a core that holds requests back for ever is given up on."""

SERIES_POINTS = 500


@dataclass(slots=True)
class RequestTrace:
    """One request's times, in simulated seconds, and what was said to who was dropped."""

    arrival: Arrival
    dispatched_s: float = inf
    first_token_s: float = inf
    finished_s: float = inf
    generated: int = 0
    dropped_s: float = inf
    retry_after_s: float = inf

    @property
    def answered(self) -> bool:
        """Whether it came to its end; a request that is dropped, or that no engine can hold, does not."""
        return self.finished_s < inf


@dataclass(slots=True)
class Outcome:
    """What happened in a run.

    Attributes:
        flights: of all arrivals, in their order.
        fleet: the engines.
        window_s: time of the last arrival: throughput is measured up to it, since what drains later says little.
        tokens_in_window: output tokens by then.
        end_s: when the last answer ended.
        depths: (time, requests in the gateway's queue), where that changes.
        occupancy: (time, integral of used KV tokens over seconds, over the fleet), at even times.
    """

    flights: list[RequestTrace]
    fleet: list[SimulatedBackend]
    window_s: float = 0.0
    tokens_in_window: float = 0.0
    end_s: float = 0.0
    depths: list[tuple[float, int]] = field(default_factory=list)
    occupancy: list[tuple[float, float]] = field(default_factory=list)


@dataclass(slots=True)
class Simulation:
    """One run.

    Args:
        core: decides what goes where, and when.
        lengths: predicts.
        fleet: the engines.
        looks: how the gateway sees them.
        on_progress: told of every request that is over.
        queue_timeout_s: how long a request may wait.
    """

    core: Core
    lengths: Lengths
    fleet: list[SimulatedBackend]
    looks: ScrapeModel = field(default_factory=ScrapeModel)
    on_progress: Callable[[], None] = lambda: None
    queue_timeout_s: float = QUEUE_TIMEOUT_S
    _flights: dict[SequenceId, RequestTrace] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict)
    _ends: list[tuple[float, int]] = field(default_factory=list)
    _due_s: list[float] = field(default_factory=list)
    _grown: dict[SequenceId, int] = field(default_factory=dict)
    _waiting: int = 0
    _waited_s: float = 0.0

    def run(self, arrivals: list[Arrival]) -> Outcome:
        """Run until all arrivals are over.

        Args:
            arrivals: in the order of their times, which begin at or after 0.

        Raises:
            StarvedError: the core holds requests back for ever.
        """
        self._due_s = [-inf] * len(self.fleet)
        self._index = {backend.name: index for index, backend in enumerate(self.fleet)}
        outcome = Outcome([], self.fleet, window_s=arrivals[-1].arrival_s if arrivals else 0.0)
        sample_s = outcome.window_s / SERIES_POINTS or 1.0
        now = next_look_s = next_sample_s = 0.0
        upcoming, idle_looks = 0, 0
        while upcoming < len(arrivals) or self._ends or self._waiting:
            arrival_s = arrivals[upcoming].arrival_s if upcoming < len(arrivals) else inf
            before, now = now, min(self._ends[0][0] if self._ends else inf, arrival_s, next_look_s)
            self._waited_s += now - before if self._waiting else 0.0
            messages: list[Message] = []
            if now >= next_look_s:
                next_look_s = now + self.looks.interval_s
                messages += [BackendObserved(self.looks.at(backend, now)) for backend in self.fleet]
                idle_looks = 0 if self._ends or upcoming < len(arrivals) else idle_looks + 1
                self._give_up_after(idle_looks)
            while upcoming < len(arrivals) and arrivals[upcoming].arrival_s <= now:
                messages.append(Submit(self._request(arrivals[upcoming])))
                upcoming += 1
            touched = []
            while self._ends and self._ends[0][0] <= now:
                end_s, index = heapq.heappop(self._ends)
                if end_s == self.fleet[index].ends_s:  # else it was cut short since
                    touched.append(index)
                    messages += self._end(index, now, outcome)
            if messages:
                touched += self._act(self.core.step([*self._progress(), *messages], now), now)
                if not outcome.depths or outcome.depths[-1][1] != self._waiting:
                    outcome.depths.append((now, self._waiting))
            self._begin(touched, now)
            if now >= next_sample_s:
                next_sample_s = now + sample_s
                outcome.occupancy.append((now, sum(backend.token_seconds_to(now) for backend in self.fleet)))
        outcome.flights = list(self._flights.values())
        outcome.end_s = max((flight.finished_s for flight in outcome.flights if flight.answered), default=now)
        return outcome

    def _request(self, arrival: Arrival) -> Request:
        self._flights[arrival.id] = RequestTrace(arrival)
        self._waiting += 1
        length = self.lengths.predict(arrival)
        deadline_s = arrival.arrival_s + self.queue_timeout_s
        return Request(arrival.id, MODEL, arrival.prompt_tokens, length, arrival.arrival_s, deadline_s)

    def _progress(self) -> Iterator[Message]:
        """Tell how far the answers have come that have grown since the last step and are not over."""
        grown, self._grown = self._grown, {}
        return (Progress(self._flights[request_id].arrival.id, tokens) for request_id, tokens in grown.items())

    def _end(self, index: int, now: float, outcome: Outcome) -> Iterable[Message]:
        """End an engine's steps; return what the core has to hear of it at once."""
        step = self.fleet[index].end(self._waited_s)
        flights, messages = self._flights, list[Message]()
        within_s = min(step.duration_s, outcome.window_s - now + step.duration_s)
        if within_s > 0:
            outcome.tokens_in_window += step.tokens * within_s / step.duration_s
        self._grown.update(step.grown)
        for request_id in step.first:
            flights[request_id].first_token_s = now
            messages.append(Tick())  # the core hears of the token by `_progress`
        for request_id in step.finished:
            flight = flights[request_id]
            self._grown.pop(request_id, None)
            flight.finished_s = now
            flight.generated = flight.arrival.output_tokens
            self.lengths.learn(flight.arrival)
            self.on_progress()
            messages.append(Finished(flight.arrival.id, flight.generated))
        if step.failed:
            self._waiting += len(step.failed)
            messages.append(OutOfMemory(tuple(flights[request_id].arrival.id for request_id in step.failed)))
        return messages

    def _act(self, actions: Iterable[Action], now: float) -> list[int]:
        """Carry actions out; return the engines that got something."""
        touched: list[int] = []
        for action in actions:
            flight = self._flights[action.id]
            self._waiting -= 1
            match action:
                case Dispatch(_, name):
                    touched.append(self._index[name])
                    touched += self._dispatch(flight, self.fleet[self._index[name]], now)
                case Drop():
                    flight.dropped_s, flight.retry_after_s = now, action.retry_after_s
                    self.on_progress()
        return touched

    def _dispatch(self, flight: RequestTrace, backend: SimulatedBackend, now: float) -> list[int]:
        flight.dispatched_s = now
        if backend.accepts(flight.arrival, now):
            return []
        self.on_progress()
        return self._act(self.core.step([Finished(flight.arrival.id)], now), now)

    def _begin(self, indexes: Iterable[int], now: float) -> None:
        """Let engines begin what comes next, and note when what is under way ends."""
        for index in indexes:
            backend = self.fleet[index]
            backend.begin(now, self._waited_s)
            if backend.ends_s not in {inf, self._due_s[index]}:
                self._due_s[index] = backend.ends_s
                heapq.heappush(self._ends, (backend.ends_s, index))

    def _give_up_after(self, idle_looks: int) -> None:
        if idle_looks > PATIENCE:
            raise StarvedError(f"the core holds {self._waiting} requests back though all engines are idle")
