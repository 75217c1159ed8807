"""TGI's HTTP API: its native routes, and OpenAI's."""

import time
from typing import Any

from litestar import Response, get
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from backends.simulator.asgi import (
    HttpError,
    aborted_on_disconnect,
    decode,
    post,
    read_body,
    send_events,
    send_json,
    start_events,
)
from backends.simulator.config import EngineConfig
from backends.simulator.engine import Sequence
from backends.simulator.loop import EngineLoop, Generation
from backends.simulator.metrics import CONTENT_TYPE
from backends.simulator.prompts import Prompt
from backends.simulator.sse import DONE, stream_tokens
from backends.simulator.tgi_schema import (
    DEFAULT_NEW_TOKENS,
    ChatRequest,
    CompletionRequest,
    Envelope,
    GenerateRequest,
    NativeTemplate,
    native_body,
    tgi_error,
)
from backends.simulator.truth import Truth

VERSIONS = {"1": "1.3.4", "2": "2.2.0", "3": "3.3.7"}

MAX_CLIENT_BATCH_SIZE = 4


class TgiApi:
    """TGI's routes over one engine."""

    def __init__(self, config: EngineConfig, loop: EngineLoop, truth: Truth) -> None:
        self._config = config
        self._loop = loop
        self._truth = truth
        self._started_at = int(time.time())

    def routes(self) -> list[ASGIRouteHandler | HTTPRouteHandler]:
        """Return the route handlers of the configured version."""
        native: list[ASGIRouteHandler | HTTPRouteHandler] = [
            post("/", self._compatible),
            post("/generate", self._generate),
            post("/generate_stream", self._generate_stream),
            get("/info")(self._info),
            get("/health")(self._health),
            get("/metrics")(self._metrics),
        ]
        if self._config.tgi_version == "1":
            return native
        return [
            *native,
            post("/v1/chat/completions", self._chat),
            post("/v1/completions", self._completion),
            get("/v1/models")(self._models),
        ]

    async def _compatible(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), GenerateRequest, _not_deserialized)
        if request.stream:
            await self._stream_native(request, receive, send)
        else:
            await self._answer_native(request, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer_native(decode(await read_body(receive), GenerateRequest, _not_deserialized), receive, send)

    async def _generate_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._stream_native(decode(await read_body(receive), GenerateRequest, _not_deserialized), receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer_openai(decode(await read_body(receive), ChatRequest, _not_deserialized), receive, send)

    async def _completion(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer_openai(decode(await read_body(receive), CompletionRequest, _not_deserialized), receive, send)

    async def _answer_native(self, request: GenerateRequest, receive: Receive, send: Send) -> None:
        generation = self._submit([request.prompt()], request.output_limit)
        async with aborted_on_disconnect(self._loop, generation, receive):
            await generation.finish()
            if not generation.aborted:
                body = native_body(generation.choices[0], details=request.parameters.details)
                await send_json(send, 200, body)

    async def _stream_native(self, request: GenerateRequest, receive: Receive, send: Send) -> None:
        generation = self._submit([request.prompt()], request.output_limit)
        async with aborted_on_disconnect(self._loop, generation, receive):
            await start_events(send)
            await stream_tokens(generation, NativeTemplate(self._config.tgi_version != "1"), send)
            if not generation.aborted:
                await send_events(send, "", last=True)

    async def _answer_openai(self, request: ChatRequest | CompletionRequest, receive: Receive, send: Send) -> None:
        generation = self._submit(request.prompts(), request.output_limit)
        envelope = Envelope.new(self._config.model, chat=isinstance(request, ChatRequest))
        async with aborted_on_disconnect(self._loop, generation, receive):
            if request.stream:
                await start_events(send)
                await stream_tokens(generation, envelope.template(), send)
                if not generation.aborted:
                    with_usage = request.stream_options is not None and request.stream_options.include_usage
                    ending = envelope.usage_event(generation.choices) if with_usage else ""
                    await send_events(send, ending + DONE, last=True)
                return
            await generation.finish()
            if not generation.aborted:
                await send_json(send, 200, envelope.body(generation.choices))

    def _submit(self, prompts: list[Prompt], limit: int | None) -> Generation:
        if len(prompts) > MAX_CLIENT_BATCH_SIZE:
            raise tgi_error("validation", f"batch size must be <= {MAX_CLIENT_BATCH_SIZE}. Given: {len(prompts)}")
        sequences = [self._sequence(prompt, limit) for prompt in prompts]
        if not sequences:
            raise tgi_error("validation", "Input validation error: `inputs` cannot be empty")
        if self._loop.requests >= self._config.max_concurrent_requests:
            self._loop.metrics.rejections += 1
            raise tgi_error("overloaded", "Model is overloaded")
        return self._loop.submit(sequences)

    def _sequence(self, prompt: Prompt, limit: int | None) -> Sequence:
        answer = self._truth.answer(prompt.sha)
        prompt_tokens, total = prompt.tokens_given(answer), self._config.context_tokens
        if prompt_tokens >= total:
            raise tgi_error(
                "validation",
                f"Input validation error: `inputs` must have less than {total} tokens. Given: {prompt_tokens}",
            )
        max_new_tokens = min(DEFAULT_NEW_TOKENS, total - prompt_tokens) if limit is None else limit
        if max_new_tokens < 1:
            raise tgi_error("validation", "Input validation error: `max_new_tokens` must be strictly positive")
        if prompt_tokens + max_new_tokens > total:
            raise tgi_error(
                "validation",
                f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {total}. "
                f"Given: {prompt_tokens} `inputs` tokens and {max_new_tokens} `max_new_tokens`",
            )
        return Sequence(
            id=0, prompt_tokens=prompt_tokens, output_tokens=answer.output_tokens, max_new_tokens=max_new_tokens
        )

    async def _models(self) -> dict[str, Any]:
        card = {"id": self._config.model, "object": "model", "created": self._started_at, "owned_by": "openai"}
        return {"object": "list", "data": [card]}

    async def _info(self) -> dict[str, Any]:
        total = self._config.context_tokens
        info = {
            "model_id": self._config.model,
            "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": self._config.max_concurrent_requests,
            "max_best_of": 2,
            "max_stop_sequences": 4,
            "max_input_tokens": total - 1,
            "max_total_tokens": total,
            "validation_workers": 2,
            "max_client_batch_size": MAX_CLIENT_BATCH_SIZE,
            "router": "text-generation-router",
            "version": VERSIONS[self._config.tgi_version],
            "sha": None,
            "docker_label": None,
        }
        if self._config.tgi_version != "3":
            info |= {"max_batch_total_tokens": self._loop.engine.kv_capacity_tokens, "max_waiting_tokens": 20}
        return info

    async def _health(self) -> Response[bytes]:
        return Response(b"")

    async def _metrics(self) -> Response[bytes]:
        return Response(self._loop.metrics.page(), media_type=CONTENT_TYPE)


def _not_deserialized(reason: str) -> HttpError:
    return tgi_error("validation", f"Failed to deserialize the JSON body into the target type: {reason}")
