"""A discrete-event simulation: arrivals, engine steps and scrapes, in the order of their times.

The scheduler is stepped when a request arrives, gets its first token or ends, and at every scrape. Each step also
reports how far the other answers have grown. Growth alone causes no step: it changes little, and such steps would be
most of a run's cost.
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
from gateway.simulation.fleet import MODEL, ScrapeModel, SimulatedBackend
from gateway.simulation.lengths import Lengths
from gateway.simulation.workload import Arrival

QUEUE_TIMEOUT_S = 1e9

MAX_IDLE_SCRAPES = 100
"""Scrapes in a row that find every engine idle while requests wait. After these the run stops with an error."""

SERIES_POINTS = 500
"""Points of the series of KV usage over time."""


@dataclass(slots=True)
class RequestTrace:
    """One request's times, in simulated seconds. A time is infinite if the event did not happen.

    Attributes:
        generated: tokens of the answer.
        retry_after_s: Retry-After of a request that was dropped.
    """

    arrival: Arrival
    dispatched_s: float = inf
    first_token_s: float = inf
    finished_s: float = inf
    generated: int = 0
    dropped_s: float = inf
    retry_after_s: float = inf

    @property
    def answered(self) -> bool:
        """Whether the answer ended. A request that was dropped, or that no engine can hold, has no answer."""
        return self.finished_s < inf


@dataclass(slots=True)
class SimulationResult:
    """Everything that happened in a run.

    Attributes:
        requests: one trace for each arrival, in the order of arrival.
        fleet: the engines.
        window_s: time of the last arrival. Throughput is measured until then; the rest of the run only empties queues.
        tokens_in_window: output tokens until then.
        end_s: when the last answer ended.
        depths: (time, requests in the gateway's queue), one entry for each change.
        occupancy: (time, integral of used KV tokens over seconds, over all engines), at even intervals.
    """

    requests: list[RequestTrace]
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
        core: the scheduler.
        lengths: predicts answer lengths.
        fleet: the engines.
        scrapes: what the gateway learns from scraping the engines.
        on_finish: called once for each request that was answered, dropped or refused.
        queue_timeout_s: longest time that a request may wait.
    """

    core: Core
    lengths: Lengths
    fleet: list[SimulatedBackend]
    scrapes: ScrapeModel = field(default_factory=ScrapeModel)
    on_finish: Callable[[], None] = lambda: None
    queue_timeout_s: float = QUEUE_TIMEOUT_S
    _traces: dict[SequenceId, RequestTrace] = field(default_factory=dict)
    _index: dict[str, int] = field(default_factory=dict)
    _ends: list[tuple[float, int]] = field(default_factory=list)
    _due_s: list[float] = field(default_factory=list)
    _grown: dict[SequenceId, int] = field(default_factory=dict)
    _waiting: int = 0
    _waited_s: float = 0.0

    def run(self, arrivals: list[Arrival]) -> SimulationResult:
        """Run until every request was answered, dropped or refused.

        Args:
            arrivals: the requests in the order of their times. The first time is 0 or later.

        Raises:
            StarvedError: the scheduler holds requests back although every engine is idle.
        """
        self._due_s = [-inf] * len(self.fleet)
        self._index = {backend.name: index for index, backend in enumerate(self.fleet)}
        result = SimulationResult([], self.fleet, window_s=arrivals[-1].arrival_s if arrivals else 0.0)
        sample_s = result.window_s / SERIES_POINTS or 1.0
        now = next_scrape_s = next_sample_s = 0.0
        upcoming, idle_scrapes = 0, 0
        while upcoming < len(arrivals) or self._ends or self._waiting:
            arrival_s = arrivals[upcoming].arrival_s if upcoming < len(arrivals) else inf
            before, now = now, min(self._ends[0][0] if self._ends else inf, arrival_s, next_scrape_s)
            self._waited_s += now - before if self._waiting else 0.0
            messages: list[Message] = []
            if now >= next_scrape_s:
                next_scrape_s = now + self.scrapes.interval_s
                messages += [BackendObserved(self.scrapes.scrape(backend, now)) for backend in self.fleet]
                idle_scrapes = 0 if self._ends or upcoming < len(arrivals) else idle_scrapes + 1
                self._stop_after(idle_scrapes)
            while upcoming < len(arrivals) and arrivals[upcoming].arrival_s <= now:
                messages.append(Submit(self._request(arrivals[upcoming])))
                upcoming += 1
            touched = []
            while self._ends and self._ends[0][0] <= now:
                end_s, index = heapq.heappop(self._ends)
                if end_s == self.fleet[index].ends_s:  # otherwise the stretch was cut
                    touched.append(index)
                    messages += self._end(index, now, result)
            if messages:
                touched += self._act(self.core.step([*self._progress(), *messages], now), now)
                if not result.depths or result.depths[-1][1] != self._waiting:
                    result.depths.append((now, self._waiting))
            self._begin(touched, now)
            if now >= next_sample_s:
                next_sample_s = now + sample_s
                result.occupancy.append((now, sum(backend.token_seconds_to(now) for backend in self.fleet)))
        result.requests = list(self._traces.values())
        result.end_s = max((trace.finished_s for trace in result.requests if trace.answered), default=now)
        return result

    def _request(self, arrival: Arrival) -> Request:
        self._traces[arrival.id] = RequestTrace(arrival)
        self._waiting += 1
        length = self.lengths.predict(arrival)
        deadline_s = arrival.arrival_s + self.queue_timeout_s
        return Request(arrival.id, MODEL, arrival.prompt_tokens, length, arrival.arrival_s, deadline_s)

    def _progress(self) -> Iterator[Message]:
        """Report the answers that have grown since the last step and have not ended."""
        grown, self._grown = self._grown, {}
        return (Progress(self._traces[request_id].arrival.id, tokens) for request_id, tokens in grown.items())

    def _end(self, index: int, now: float, result: SimulationResult) -> Iterable[Message]:
        """End an engine's step or stretch, and return the messages that the scheduler must get now."""
        step = self.fleet[index].end(self._waited_s)
        traces, messages = self._traces, list[Message]()
        within_s = min(step.duration_s, result.window_s - now + step.duration_s)
        if within_s > 0:
            result.tokens_in_window += step.tokens * within_s / step.duration_s
        self._grown.update(step.grown)
        for request_id in step.first:
            traces[request_id].first_token_s = now
            messages.append(Tick())  # `_progress` reports the token itself
        for request_id in step.finished:
            trace = traces[request_id]
            self._grown.pop(request_id, None)
            trace.finished_s = now
            trace.generated = trace.arrival.output_tokens
            self.lengths.learn(trace.arrival)
            self.on_finish()
            messages.append(Finished(trace.arrival.id, trace.generated))
        if step.failed:
            self._waiting += len(step.failed)
            messages.append(OutOfMemory(tuple(traces[request_id].arrival.id for request_id in step.failed)))
        return messages

    def _act(self, actions: Iterable[Action], now: float) -> list[int]:
        """Carry out actions, and return the engines that got a request."""
        touched: list[int] = []
        for action in actions:
            trace = self._traces[action.id]
            self._waiting -= 1
            match action:
                case Dispatch(_, name):
                    touched.append(self._index[name])
                    touched += self._dispatch(trace, self.fleet[self._index[name]], now)
                case Drop():
                    trace.dropped_s, trace.retry_after_s = now, action.retry_after_s
                    self.on_finish()
        return touched

    def _dispatch(self, trace: RequestTrace, backend: SimulatedBackend, now: float) -> list[int]:
        trace.dispatched_s = now
        if backend.accepts(trace.arrival, now):
            return []
        self.on_finish()
        return self._act(self.core.step([Finished(trace.arrival.id)], now), now)

    def _begin(self, indexes: Iterable[int], now: float) -> None:
        """Let engines begin their next step, and note when it ends."""
        for index in indexes:
            backend = self.fleet[index]
            backend.begin(now, self._waited_s)
            if backend.ends_s not in {inf, self._due_s[index]}:
                self._due_s[index] = backend.ends_s
                heapq.heappush(self._ends, (backend.ends_s, index))

    def _stop_after(self, idle_scrapes: int) -> None:
        if idle_scrapes > MAX_IDLE_SCRAPES:
            raise StarvedError(f"the scheduler holds {self._waiting} requests back although every engine is idle")
