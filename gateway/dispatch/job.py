"""What is to be done for one request."""

from dataclasses import dataclass

from gateway.protocol.api_formats import COMPLETIONS, ApiFormat
from gateway.scheduling.messages import Request
from gateway.upstream.client import Call


@dataclass(frozen=True, slots=True)
class Job:
    """One generation: what the scheduler knows of it, what is sent, and in which form its client wants the answer.

    `includes_usage`: the client of a stream asked for its usage; where it did not, `call` asks in its stead.
    `api_format` is that of the API that it came by; `takes_priority` tells that a body of that API may carry one.
    """

    request: Request
    call: Call
    stream: bool = False
    includes_usage: bool = False
    max_tokens: int | None = None
    api_format: ApiFormat = COMPLETIONS
    takes_priority: bool = False

    @property
    def hides_usage(self) -> bool:
        """Whether the gateway asked for a stream's usage, and not the client."""
        return self.stream and not self.includes_usage
