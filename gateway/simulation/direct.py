"""What there is without a gateway's queue: every request goes to some engine at once. The baselines of a simulation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from gateway.scheduling.messages import Action, BackendSeen, Dispatch, Finished, Message, Submit


@dataclass(slots=True)
class DirectScheduler:
    """Sends at once: to the backend with the fewest requests of ours, or to each in turn."""

    round_robin: bool = False
    _in_flight: dict[str, set[str]] = field(default_factory=dict)
    _turn: "count[int]" = field(default_factory=count)

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Take what happened and return what is to be done, as `Scheduler.step` does."""
        del now  # nobody waits here
        actions: list[Action] = []
        for message in messages:
            match message:
                case BackendSeen(state):
                    self._in_flight.setdefault(state.name, set())
                case Finished(request_id):
                    for running in self._in_flight.values():
                        running.discard(request_id)
                case Submit(request):
                    name = self._next()
                    self._in_flight[name].add(request.id)
                    actions.append(Dispatch(request.id, name))
                case _:
                    continue
        return actions

    def _next(self) -> str:
        if self.round_robin:
            names = list(self._in_flight)
            return names[next(self._turn) % len(names)]
        return min(self._in_flight, key=lambda name: (len(self._in_flight[name]), name))
