"""A fake scheduler that only forms batches, for tests of batch calls."""

from dataclasses import dataclass, field

from gateway.scheduling.messages import Dispatch, OutOfMemory, Returned, Submit


@dataclass
class Core:
    """Dispatches `size` requests as one batch to `backend`. Returned requests go to `other`, one by one."""

    size: int
    backend: str
    other: str
    messages: list = field(default_factory=list)
    waiting: list = field(default_factory=list)

    def step(self, messages, now):
        del now
        self.messages += messages
        for message in messages:
            match message:
                case Submit(request):
                    self.waiting.append(request.id)
                case Returned(id):
                    yield Dispatch(id, self.other)
                case OutOfMemory(ids):
                    yield from self.batch(ids[: len(ids) // 2])
                    yield from self.batch(ids[len(ids) // 2 :])
        if len(self.waiting) == self.size:
            yield from self.batch(tuple(self.waiting))
            self.waiting.clear()

    def batch(self, ids):
        return [Dispatch(id, self.backend, ids) for id in ids]

    def wake_at_s(self, now):
        del now

    def load(self, name):
        del name

    def received(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]
