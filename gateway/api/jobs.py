"""From a request that was read and forecast to the job that is queued and sent."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil

from gateway.api.exchange import JSON, Exchange
from gateway.dispatch.job import Job
from gateway.prediction.predictor import Forecast
from gateway.protocol.anthropic import read_messages
from gateway.protocol.api_formats import ANTHROPIC, COMPLETIONS, RESPONSES, ApiFormat
from gateway.protocol.batches import batch_key
from gateway.protocol.edits import ask_for_usage, with_default
from gateway.protocol.fields import Generation, read_chat, read_completion
from gateway.protocol.prefixes import Beginning, chat_beginnings
from gateway.protocol.responses import read_response_request
from gateway.scheduling.messages import Prefix, Request
from gateway.upstream.client import Call

MIN_PREFIX_TOKENS = 64
"""A shorter beginning saves no prefill worth speaking of."""

BOUND_STEP = 64
"""Bounds of answers are multiples of it, so that few of them differ and static engines still find equal ones."""

PROMPT_MARGIN = 1.5
"""A prompt may have so many times the tokens that it was estimated to have."""

_FORWARDED = ("accept", "traceparent", "tracestate", "anthropic-version", "anthropic-beta")
"""Request headers that an engine gets; the caller's key is not among them."""


@dataclass(frozen=True, slots=True)
class Route:
    """A generation route, which engines serve under the same path, and how its bodies are read.

    Args:
        path: as OpenAI has it.
        read: the fields that the gateway uses.
        beginnings: what the prompt may have in common with others', the longest first.
        batch_key: equal for bodies that may go to a static engine in one call; None for those that may not.
        dialect: how its answers, streams and errors are worded.
        takes_priority: a body may carry vLLM's `priority`.
        length_field: the name of the longest answer that a body asks for.
    """

    path: str
    read: Callable[[bytes], Generation]
    beginnings: Callable[[bytes], tuple[Beginning, ...]] = lambda _: ()
    batch_key: Callable[[bytes], int | None] = lambda _: None
    api_format: ApiFormat = COMPLETIONS
    takes_priority: bool = True
    length_field: str = "max_tokens"


CHAT = Route("/v1/chat/completions", read_chat, beginnings=chat_beginnings)
COMPLETION = Route("/v1/completions", read_completion, batch_key=batch_key)
RESPONSE = Route("/v1/responses", read_response_request, api_format=RESPONSES, length_field="max_output_tokens")
MESSAGES = Route("/v1/messages", read_messages, beginnings=chat_beginnings, api_format=ANTHROPIC, takes_priority=False)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms requests wait: for how long at most, and whose applications go first (lower, 0 by default)."""

    queue_timeout_s: float
    priorities: Mapping[str, int]

    def job(self, exchange: Exchange, forecast: Forecast, route: Route, body: bytes, headers: Mapping[str, str]) -> Job:
        """Return the job of an exchange whose body was read.

        Args:
            exchange: with its application and what it asks for.
            forecast: of its answer.
            route: that it came by.
            body: goes to the engine as it is, but that a stream's usage is asked for, and an answer's bound is set.
            headers: the client's, in lower case.
        """
        asked, bound = exchange.asked, exchange.bound_tokens
        if asked is None:
            raise ValueError("an exchange is read before it becomes a job")
        length, max_tokens = forecast.length, asked.max_tokens
        if bound is not None:
            body = with_default(body, route.length_field, bound)
            length, max_tokens = replace(length, cap=bound), bound
        arrival_s = exchange.trip.arrival_s
        request = Request(
            id=exchange.id,
            model=asked.model,
            prompt_tokens=forecast.prompt_tokens,
            length=length,
            arrival_s=arrival_s,
            deadline_s=arrival_s + self.queue_timeout_s,
            sequences=asked.sequences,
            priority=self.priorities.get(exchange.app or "", 0),
            prefixes=_prefixes(route.beginnings(body), forecast.prompt_tokens),
            batch_key=route.batch_key(body),
        )
        body = ask_for_usage(body) if asked.stream and not asked.includes_usage else body
        call = Call(route.path, forwarded(headers, JSON, exchange.request_id), body)
        return Job(
            request,
            call,
            asked.stream,
            asked.includes_usage,
            max_tokens,
            api_format=route.api_format,
            takes_priority=route.takes_priority,
        )


def bound_of(forecast: Forecast, level: float, context: int | None) -> int | None:
    """Return the longest answer to ask for where a client names none: the quantile at `level`, rounded up.

    None where the prompt may leave no room for it in the model's context, of so many tokens: an engine refuses what
    does not fit, and what a prompt has in tokens is an estimate.
    """
    bound = BOUND_STEP * ceil(forecast.length.quantile(level) / BOUND_STEP)
    if context is not None and PROMPT_MARGIN * forecast.prompt_tokens + bound > context:
        return None
    return bound


def forwarded(headers: Mapping[str, str], content_type: str, request_id: str) -> dict[str, str]:
    """Return the headers that an engine gets, of those that the client sent."""
    kept = {name: headers[name] for name in _FORWARDED if name in headers}
    return {**kept, "content-type": content_type, "x-request-id": request_id}


def _prefixes(beginnings: tuple[Beginning, ...], prompt_tokens: int) -> tuple[Prefix, ...]:
    sized = [Prefix(key, round(share * prompt_tokens)) for key, share in beginnings]
    return tuple([prefix for prefix in sized if prefix.tokens >= MIN_PREFIX_TOKENS])
