"""The demand for one model: its queue, and what the scheduler has learned of the predictions for its requests."""

from dataclasses import dataclass, field
from math import exp

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Request
from gateway.scheduling.queue import ModelQueue, WaitingRequest

BIAS_WINDOW = 200
"""Answers over which the length bias is averaged, weighted exponentially."""

BIAS_PRIOR_ANSWERS = 20.0
"""Answers without bias that the average starts with; each real answer replaces one."""

BIAS_TOLERANCE = 1.25
"""A bias within this factor of 1 is noise and is not applied."""

MAX_BIAS = 50.0

FOOTPRINT_WEIGHT = 0.01
"""Weight of one request in the mean footprint."""

MAX_FOOTPRINT = 100.0

_KEEP = exp(-1.0 / BIAS_WINDOW)


@dataclass(slots=True)
class LengthBias:
    """Ratio of the tokens that came to the tokens that were predicted, over all answers of one model.

    A predictor that is right on average has a factor of 1. A broken predictor, or an engine whose model was replaced,
    makes every memory test wrong in the same direction. Multiplying predictions by the factor corrects that.

    >>> bias = LengthBias()
    >>> for _ in range(300):
    ...     bias.learn_one(predicted_tokens=1000.0, output_tokens=100)
    >>> round(bias.factor, 2)
    0.1
    """

    _predicted: float = 0.0
    _came: float = 0.0
    _weight: float = 0.0

    @property
    def factor(self) -> float:
        """Factor by which predicted lengths are multiplied."""
        if not self._weight:
            return 1.0
        no_bias = max(0.0, BIAS_PRIOR_ANSWERS - self._weight) * self._predicted / self._weight
        factor = (self._came + no_bias) / (self._predicted + no_bias)
        return min(MAX_BIAS, max(1.0 / MAX_BIAS, factor)) if not 1.0 / BIAS_TOLERANCE < factor < BIAS_TOLERANCE else 1.0

    def learn_one(self, predicted_tokens: float, output_tokens: float) -> None:
        """Learn from an answer that ended by itself. `predicted_tokens` is the mean of its prediction."""
        self._predicted = self._predicted * _KEEP + predicted_tokens
        self._came = self._came * _KEEP + output_tokens
        self._weight = self._weight * _KEEP + 1.0

    def correct(self, length: LengthQuantiles) -> LengthQuantiles:
        """Return a predicted length, multiplied by the factor."""
        factor = self.factor
        return length if factor == 1.0 else length.scaled(factor)


@dataclass(slots=True)
class Footprint:
    """The mean KV tokens that a request holds while it runs, learned from all requests.

    Requests share an engine's memory. A request with a prompt of 4 000 tokens keeps ten small ones out for every second
    of its service, so the queue weighs service times by memory. Where all requests have one size, the weight is 1.
    """

    _mean_tokens: float = 0.0

    def weigh(self, tokens: float) -> float:
        """Return a request's KV tokens over the mean, and update the mean.

        Args:
            tokens: the prompt and half of the predicted answer, which is what the request holds on average.

        >>> footprint = Footprint()
        >>> footprint.weigh(100.0)
        1.0
        >>> round(footprint.weigh(300.0), 2)
        2.94
        """
        mean = self._mean_tokens or tokens
        self._mean_tokens = mean + FOOTPRINT_WEIGHT * (tokens - mean)
        return min(MAX_FOOTPRINT, max(1.0 / MAX_FOOTPRINT, tokens / max(1.0, self._mean_tokens)))


@dataclass(slots=True)
class ModelDemand:
    """One model's queue and the corrections of its predictions.

    Attributes:
        reference: a backend that serves the model or served it last. Its speed predicts the service times of all
            requests of the model, wherever they run later.
    """

    queue: ModelQueue
    bias: LengthBias = field(default_factory=LengthBias)
    footprint: Footprint = field(default_factory=Footprint)
    reference: BackendLoad | None = None

    def enqueue(self, request: Request, avoids: frozenset[str] = frozenset()) -> None:
        """Queue a request by its predicted service time, weighed by its share of memory.

        Args:
            request: the new request.
            avoids: backends that it does not wait for.
        """
        output_tokens = request.length.mean() * self.bias.factor
        reference = self.reference or BackendLoad(BackendState("", frozenset(), healthy=False))
        unweighted_s = reference.completion_s(request, output_tokens)
        service_s = unweighted_s * self.footprint.weigh(request.prompt_tokens + output_tokens / 2)
        self.queue.push(WaitingRequest(request, service_s, output_tokens, avoids=avoids))

    def learn_one(self, request: Request, output_tokens: int) -> None:
        """Learn from an answer that ended by itself, with `output_tokens` over all its sequences."""
        self.bias.learn_one(request.length.mean(), output_tokens / request.sequences)
