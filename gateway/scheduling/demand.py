"""What is asked of one model: who waits for it, and how good the predictions of its answers turn out to be."""

from dataclasses import dataclass, field

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.footprint import Footprint
from gateway.scheduling.length_bias import LengthBias
from gateway.scheduling.messages import BackendState, Request
from gateway.scheduling.queue import ModelQueue, Waiting


@dataclass(slots=True)
class ModelDemand:
    """One model's queue, and what its predictions are to be multiplied by.

    `example` is some backend that serves the model, or served it last: service times are predicted by its speed,
    wherever a request will run.
    """

    queue: ModelQueue
    bias: LengthBias = field(default_factory=LengthBias)
    footprint: Footprint = field(default_factory=Footprint)
    example: BackendLoad | None = None

    def enqueue(self, request: Request) -> None:
        """Queue an arrival by its predicted service time, weighed by its share of memory."""
        output_tokens = request.length.mean() * self.bias.factor
        example = self.example or BackendLoad(BackendState("", frozenset(), healthy=False))
        alone_s = example.completion_s(request, output_tokens)
        service_s = alone_s * self.footprint.weigh(request.prompt_tokens + output_tokens / 2)
        self.queue.push(Waiting(request, service_s, output_tokens))

    def learn_one(self, request: Request, output_tokens: int) -> None:
        """Learn from an answer that came to its own end."""
        self.bias.learn_one(request.length.mean(), output_tokens / request.sequences)
