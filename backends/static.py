"""An engine that takes one padded batch at a time.

It serves OpenAI's routes, a batch being one call with a list of prompts; its metrics, if any, bear vLLM's names. One
that tells nothing is known by its operator's figures.
"""

from dataclasses import dataclass
from http import HTTPStatus

from backends.base import BackendSpec, EngineError, Snapshot
from backends.http import Endpoint
from backends.openai_api import read_error, read_models_and_metrics
from backends.vllm import read_snapshot

QUEUE_FULL_STATUS = HTTPStatus.SERVICE_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class StaticBackend:
    """A server with static batching."""

    endpoint: Endpoint

    @property
    def spec(self) -> BackendSpec:
        """The engine as its operator describes it."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Ask the engine for its models, memory and load."""
        models, metrics = await read_models_and_metrics(self.endpoint)
        return read_snapshot(models, metrics, self.spec.kv_tokens)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later'."""
        return status == QUEUE_FULL_STATUS

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read an error body in OpenAI's shape."""
        return read_error(status, body)
