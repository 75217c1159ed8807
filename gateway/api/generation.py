"""The routes of generations: read a request, identify its application, predict its answer, build it and send it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil

import msgspec
from litestar.handlers import ASGIRouteHandler

from backends.base import ModelCard
from gateway.api.asgi import JSON, AsgiClient, KeepAlive, Limits, WhileConnected, off_loop
from gateway.api.auth import Authenticator, application_of_system_prompt
from gateway.api.middleware import Middleware
from gateway.dispatch.context import RequestContext
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.dispatch.passthrough_proxy import only_model
from gateway.errors import BodyTooLarge, NoBackend
from gateway.fleet.breaker import fingerprint_of
from gateway.fleet.pool import BackendPool
from gateway.prediction.prediction_input import PredictionInput, bounded
from gateway.prediction.predictor import Forecast, Forecaster
from gateway.protocol.api_formats import GENERATION_FORMATS
from gateway.protocol.generation_request import (
    GenerationRequest,
    ModelRules,
    read_routing,
    utf8_bytes,
)
from gateway.scheduling.messages import Prefix, Request
from gateway.upstream.client import UpstreamRequest

MIN_PREFIX_TOKENS = 64
"""A shorter prompt prefix saves too little prefill to matter."""

BOUND_STEP = 64
"""Predicted limits of answers are multiples of this, so that static engines find requests with equal limits."""

MAX_WAITING_FOR_BACKENDS = 1000
"""Most requests that may wait while no backend of their model is reachable, for example while all engines restart."""

PROMPT_MARGIN = 1.5
"""A prompt may have this many times its estimated tokens."""

TOKEN_ID_BYTES = 8
"""A token id counts as this many bytes of the prompt's text."""

_FORWARDED = ("accept", "traceparent", "tracestate", "anthropic-version", "anthropic-beta")
"""Request headers that the engine gets. The client's API key is not among them."""


class RequestBuilder:
    """Builds the scheduler's request and the engine's request from the client's.

    Args:
        queue_timeout_s: longest time in the queue.
        priorities: by application; lower goes first, and applications that are not listed have 0.
        rules: the operator's rules for models.
    """

    def __init__(self, queue_timeout_s: float, priorities: Mapping[str, int], rules: ModelRules) -> None:
        self._queue_timeout_s = queue_timeout_s
        self.configure(priorities, rules)

    def configure(self, priorities: Mapping[str, int], rules: ModelRules) -> None:
        """Use other priorities and rules from the next request on."""
        self._priorities, self._rules = priorities, rules

    def current_rules(self) -> ModelRules:
        """Return the model rules of the next request."""
        return self._rules

    def read(
        self, context: RequestContext, body: bytes, edits: Mapping[str, bytes | None], model: str
    ) -> GenerationRequest:
        """Decode the body and apply the model rules.

        Args:
            context: of the request; gets the decoded body.
            body: in JSON.
            edits: of `read_routing`.
            model: the model's own name; the body gets it if it has no model.

        Raises:
            InvalidRequest: the body is not a JSON object in UTF-8.
            BodyTooLarge: the body has too many parts.
        """
        generation = context.api_format.read_request(body)
        generation.edits.update(edits)
        if not generation.model:
            generation.model = model
        if "model" in edits:
            generation.edits["model"] = msgspec.json.encode(model)
        self._rules.apply(generation)
        context.generation = generation
        return generation

    def bound_answer(self, generation: GenerationRequest, forecast: Forecast, context_tokens: int | None) -> None:
        """Limit an answer whose length nobody has limited, if the operator configured a quantile for the model."""
        limited = generation.limits_answer or generation.max_tokens is not None
        level = None if limited else self._rules.quantiles.get(generation.model)
        bound = None if level is None else bound_of(forecast, level, context_tokens)
        if bound is not None:
            generation.bound_answer(bound)

    def build(
        self, context: RequestContext, generation: GenerationRequest, forecast: Forecast, headers: Mapping[str, str]
    ) -> tuple[Request, UpstreamRequest]:
        """Return the request for the scheduler and the one for the engine; `headers` are the client's."""
        bound = generation.bound_tokens
        request = Request(
            id=context.id,
            model=generation.model,
            prompt_tokens=forecast.prompt_tokens,
            length=forecast.length if bound is None else replace(forecast.length, cap=bound),
            arrival_s=context.arrival_s,
            deadline_s=context.arrival_s + self._queue_timeout_s,
            sequences=generation.sequences,
            priority=self._priorities.get(context.app or "", 0),
            prefixes=_prefixes(generation, forecast.prompt_tokens),
            batch_key=generation.batch_key(),
            context_tokens=forecast.prompt_tokens // generation.sequences + (generation.max_tokens or 1),
            fingerprint=context.fingerprint,
        )
        upstream_headers = forwarded_headers(headers, JSON, context.id)
        return request, UpstreamRequest(context.route, upstream_headers, generation.upstream_body())


class Generations:
    """Answers requests for generations.

    Args:
        authenticator: names the application of a request.
        pool: the backends and their models.
        forecaster: predicts the length of an answer.
        proxy: sends requests to engines.
        middleware: around every route.
        limits: for one request.
        builder: builds what is scheduled and sent.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        pool: BackendPool,
        forecaster: Forecaster,
        proxy: GenerationProxy,
        middleware: Middleware,
        limits: Limits,
        builder: RequestBuilder,
    ) -> None:
        self._authenticator = authenticator
        self._pool = pool
        self._forecaster = forecaster
        self._proxy = proxy
        self._middleware = middleware
        self._limits = limits
        self._builder = builder
        self._waiting_for_backends = 0

    def routes(self) -> list[ASGIRouteHandler]:
        """Return the route of every generation API."""
        return [self._middleware.route(format.path, format, self.answer) for format in GENERATION_FORMATS]

    async def answer(self, context: RequestContext, client: AsgiClient) -> None:
        """Answer one request.

        Raises:
            GatewayError: the request is rejected, dropped from the queue, or failed.
        """
        context.app = await self._authenticator.application(client.headers)
        raw = await client.body(self._limits, context.app)
        named, edits, body = await off_loop(raw, lambda raw: read_routing(raw, context.id))
        model = only_model(self._pool) if named is None else self._builder.current_rules().resolve(named)
        card, generation = await self._decode(context, body, edits, model)
        self._check_size(generation)
        context.app = context.app or application_of_system_prompt(generation.system)
        if self._pool.serves_now(generation.model):
            return await self._forecast_and_send(context, client, context.app, generation, card)
        if self._waiting_for_backends >= MAX_WAITING_FOR_BACKENDS:
            raise NoBackend("No backend that serves the model is reachable now, and many requests wait for one")
        self._waiting_for_backends += 1
        try:
            await self._forecast_and_send(context, client, context.app, generation, card)
        finally:
            self._waiting_for_backends -= 1

    async def _forecast_and_send(
        self, context: RequestContext, client: AsgiClient, app: str, generation: GenerationRequest, card: ModelCard
    ) -> None:
        known = prediction_input(app, generation)
        context.fingerprint = fingerprint_of(app, generation.model, known.text, generation.text_bytes)
        forecast = await self._forecaster.forecast(known, card.max_model_len)
        context.forecast = forecast
        self._builder.bound_answer(generation, forecast, card.max_model_len)
        request, upstream_request = self._builder.build(context, generation, forecast, client.headers)
        keep_alive_s = self._limits.keepalive_s if generation.stream else 0.0
        async with WhileConnected(client.receive), KeepAlive(client, keep_alive_s):
            await self._proxy.run(context, request, upstream_request, client)

    async def _decode(
        self, context: RequestContext, body: bytes, edits: Mapping[str, bytes | None], model: str
    ) -> tuple[ModelCard, GenerationRequest]:
        """Look up the model, and then decode the body: an unknown model is not worth the work."""
        try:
            card = self._pool.require(model)
        except NoBackend:
            context.app = context.app or application_of_system_prompt(
                (await off_loop(body, self._reader(context, edits, model))).system
            )
            raise
        return card, await off_loop(body, self._reader(context, edits, model))

    def _reader(
        self, context: RequestContext, edits: Mapping[str, bytes | None], model: str
    ) -> Callable[[bytes], GenerationRequest]:
        return lambda body: self._builder.read(context, body, edits, model)

    def _check_size(self, generation: GenerationRequest) -> None:
        limit = self._limits.max_text_bytes
        if max(generation.text_bytes, TOKEN_ID_BYTES * (generation.prompt_tokens or 0)) > limit:
            raise BodyTooLarge(f"The prompt's text is larger than {limit} bytes")


def prediction_input(app: str, generation: GenerationRequest) -> PredictionInput:
    """Return what the predictor may use of a request."""
    text = generation.last_user or ""
    return PredictionInput(
        app=app,
        model=generation.model,
        user=generation.user,
        system=generation.system,
        text=bounded(text),
        text_bytes=generation.text_bytes,
        last_user_bytes=utf8_bytes(text),
        message_count=generation.message_count,
        max_tokens=generation.max_tokens,
        temperature=generation.temperature,
        sequences=generation.sequences,
        stop_count=generation.stop_count,
        tools_bytes=generation.tools_bytes,
        schema_bytes=generation.schema_bytes,
        json_mode=generation.schema_bytes > 0,
        reasoning_effort=generation.reasoning_effort,
        prompt_tokens=generation.prompt_tokens,
    )


def bound_of(forecast: Forecast, level: float, context_tokens: int | None) -> int | None:
    """Return a limit for an answer that has none: the quantile at `level`, rounded up to `BOUND_STEP`.

    Return None if prompt and limit may exceed the model's context: an engine rejects such a request, and the prompt's
    tokens are an estimate.
    """
    bound = BOUND_STEP * ceil(forecast.length.quantile(level) / BOUND_STEP)
    if context_tokens is not None and PROMPT_MARGIN * forecast.prompt_tokens + bound > context_tokens:
        return None
    return bound


def forwarded_headers(headers: Mapping[str, str], content_type: str, request_id: str) -> dict[str, str]:
    """Return the headers for the engine; `request_id` is our own, because an engine needs unique ones."""
    kept = {name: headers[name] for name in _FORWARDED if name in headers}
    return {**kept, "content-type": content_type, "x-request-id": request_id}


def _prefixes(generation: GenerationRequest, prompt_tokens: int) -> tuple[Prefix, ...]:
    prefixes = [Prefix(key, round(share * prompt_tokens)) for key, share in generation.prefixes]
    return tuple([prefix for prefix in prefixes if prefix.tokens >= MIN_PREFIX_TOKENS])
