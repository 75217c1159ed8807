"""What there is without a gateway's queue: every request goes to some engine at once. The baselines of a simulation."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from gateway.scheduling.messages import Action, BackendObserved, Dispatch, Finished, Message, Submit


@dataclass(slots=True)
class DirectScheduler:
    """Sends at once: to the backend with the fewest requests of ours, or to each in turn."""

    round_robin: bool = False
    _in_flight: dict[str, int] = field(default_factory=dict)
    _sent_to: dict[str, str] = field(default_factory=dict)
    _turn: "count[int]" = field(default_factory=count)

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Take what happened and return what is to be done, as `Scheduler.step` does."""
        del now  # nobody waits here
        actions: list[Action] = []
        for message in messages:
            match message:
                case BackendObserved(state):
                    self._in_flight.setdefault(state.name, 0)
                case Finished(request_id):
                    self._in_flight[self._sent_to.pop(request_id)] -= 1
                case Submit(request):
                    name = self._sent_to[request.id] = self._next()
                    self._in_flight[name] += 1
                    actions.append(Dispatch(request.id, name))
                case _:
                    continue
        return actions

    def _next(self) -> str:
        if self.round_robin:
            names = list(self._in_flight)
            return names[next(self._turn) % len(names)]
        return min(self._in_flight, key=lambda name: (self._in_flight[name], name))
