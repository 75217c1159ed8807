"""A discrete-event run: arrivals, steps of engines and looks at them, in the order of their times."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from backends.simulator.engine import SequenceId
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.prediction.history import HistoryPredictor
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.scheduling.messages import (
    Action,
    BackendSeen,
    Dispatch,
    Finished,
    Message,
    Progress,
    Request,
    Submit,
)
from gateway.simulation.fleet import MODEL, SimulatedBackend
from gateway.simulation.workload import Arrival

SCRAPE_S = 1.0
"""As often as the gateway looks at an engine."""

QUEUE_TIMEOUT_S = 1e9


class Core(Protocol):
    """The scheduling core, or what stands in for it."""

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Take what happened and return what is to be done."""
        ...


class Lengths(Protocol):
    """Who says how long answers will be."""

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Predict an answer's length when its request arrives."""
        ...

    def learn(self, arrival: Arrival) -> None:
        """Learn an answer's length when it is over."""
        ...


class LearnedLengths:
    """History's quantiles, learned as the run goes: what a gateway that was just started knows."""

    def __init__(self) -> None:
        self._history = HistoryPredictor()

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Predict from what is over by now."""
        return self._history.predict_one(arrival.caller, None).length

    def learn(self, arrival: Arrival) -> None:
        """Learn one length."""
        self._history.learn_one(arrival.caller, arrival.output_tokens)


class TrueLengths:
    """The truth: what a clairvoyant would do with the same policy."""

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Tell the truth."""
        return LengthQuantiles.of((float(arrival.output_tokens),) * len(LEVELS))

    def learn(self, arrival: Arrival) -> None:
        """Know it already."""


@dataclass(slots=True)
class Flight:
    """One request's times, in simulated seconds."""

    arrival: Arrival
    dispatched_s: float = inf
    first_token_s: float = inf
    finished_s: float = inf
    generated: int = 0

    @property
    def answered(self) -> bool:
        """Whether it came to its end; a request that no engine can hold does not."""
        return self.finished_s < inf


@dataclass(slots=True)
class Simulation:
    """One run.

    Args:
        core: decides what goes where, and when.
        lengths: predicts.
        fleet: the engines.
    """

    core: Core
    lengths: Lengths
    fleet: list[SimulatedBackend]
    on_progress: Callable[[], None] = lambda: None
    flights: dict[SequenceId, Flight] = field(default_factory=dict)
    _steps: list[tuple[float, int]] = field(default_factory=list)

    def run(self, arrivals: list[Arrival]) -> list[Flight]:
        """Run until all arrivals are over; return their flights, in order of arrival."""
        now, scraped_s = 0.0, -inf
        waiting = iter(arrivals)
        upcoming = next(waiting, None)
        while upcoming is not None or self._steps:
            step_s = self._steps[0][0] if self._steps else inf
            now = min(step_s, upcoming.arrival_s if upcoming else inf)
            messages: list[Message] = []
            if now - scraped_s >= SCRAPE_S:
                scraped_s = now
                messages += [BackendSeen(backend.state()) for backend in self.fleet]
            while upcoming is not None and upcoming.arrival_s <= now:
                messages.append(Submit(self._request(upcoming)))
                upcoming = next(waiting, None)
            while self._steps and self._steps[0][0] <= now:
                _, index = heapq.heappop(self._steps)
                messages += self._end_step(index, now)
            self._act(self.core.step(messages, now) if messages else [], now)
            self._begin_steps(now)
        return list(self.flights.values())

    def _request(self, arrival: Arrival) -> Request:
        self.flights[arrival.id] = Flight(arrival)
        length = self.lengths.predict(arrival)
        return Request(
            arrival.id, MODEL, arrival.prompt_tokens, length, arrival.arrival_s, arrival.arrival_s + QUEUE_TIMEOUT_S
        )

    def _end_step(self, index: int, now: float) -> Iterable[Message]:
        step = self.fleet[index].end_step()
        flights = self.flights
        for request_id in step.first:
            flights[request_id].first_token_s = min(now, flights[request_id].first_token_s)
        for request_id in step.emitted:
            flight = flights[request_id]
            flight.generated += 1
            if not flight.generated % PROGRESS_TOKENS:
                yield Progress(flight.arrival.id, flight.generated)
        for request_id in step.finished:
            flight = flights[request_id]
            flight.finished_s = now
            self.lengths.learn(flight.arrival)
            self.on_progress()
            yield Finished(flight.arrival.id)

    def _act(self, actions: Iterable[Action], now: float) -> None:
        names = {backend.name: backend for backend in self.fleet}
        for action in actions:
            if isinstance(action, Dispatch):
                self._dispatch(self.flights[action.id], names[action.backend], now)

    def _dispatch(self, flight: Flight, backend: SimulatedBackend, now: float) -> None:
        flight.dispatched_s = now
        if not backend.accepts(flight.arrival):
            self.on_progress()
            self._act(self.core.step([Finished(flight.arrival.id)], now), now)

    def _begin_steps(self, now: float) -> None:
        for index, backend in enumerate(self.fleet):
            if (duration_s := backend.begin_step()) is not None:
                heapq.heappush(self._steps, (now + duration_s, index))
