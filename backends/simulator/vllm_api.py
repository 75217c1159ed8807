"""vLLM's HTTP API, for the kinds `vllm` and `static`."""

import time
from typing import Any
from uuid import uuid4

from litestar import Response, get
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.types import Receive, Scope, Send

from backends.simulator.anthropic_api import OUT_OF_MEMORY, AnthropicApi
from backends.simulator.asgi import (
    HttpError,
    aborted_on_disconnect,
    decode,
    header,
    post,
    read_body,
    send_events,
    send_json,
    start_events,
)
from backends.simulator.config import EngineConfig
from backends.simulator.loop import EngineLoop, Generation
from backends.simulator.metrics import CONTENT_TYPE
from backends.simulator.prompts import Prompt, chat_prompt, completion_prompts
from backends.simulator.sse import DONE, data_event, stream_tokens
from backends.simulator.text import detokenize, tokenize
from backends.simulator.truth import Truth
from backends.simulator.vllm_schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Envelope,
    GenerationRequest,
    StreamOptions,
    TokenizeRequest,
    bad_request,
    usage,
    vllm_error,
)
from backends.simulator.vllm_sequences import SequenceBuilder

VERSION = "0.32.0"

BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."


class VllmApi:
    """vLLM's routes over one engine."""

    def __init__(self, config: EngineConfig, loop: EngineLoop, truth: Truth) -> None:
        self._config = config
        self._loop = loop
        self._builder = SequenceBuilder(config, truth)
        self._started_at = int(time.time())

    def routes(self) -> list[ASGIRouteHandler | HTTPRouteHandler]:
        """Return the route handlers."""
        return [
            post("/v1/chat/completions", self._chat),
            post("/v1/completions", self._completion),
            *AnthropicApi(self._loop, self._submit).routes(),
            post("/tokenize", self._tokenize),
            post("/detokenize", self._detokenize),
            get("/v1/models")(self._models),
            get("/health")(self._health),
            get("/version")(self._version),
            get("/load")(self._load),
            get("/metrics")(self._metrics),
        ]

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), ChatRequest, bad_request)
        await self._generate(request, [chat_prompt(request.messages)], scope, receive, send)

    async def _completion(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), CompletionRequest, bad_request)
        await self._generate(request, completion_prompts(request.prompt), scope, receive, send)

    async def _generate(
        self, request: GenerationRequest, prompts: list[Prompt], scope: Scope, receive: Receive, send: Send
    ) -> None:
        generation = self._submit(request, prompts)
        request_id = header(scope, b"x-request-id") or uuid4().hex
        envelope = Envelope.new(request_id, self._config.model, chat=isinstance(request, ChatRequest))
        async with aborted_on_disconnect(self._loop, generation, receive):
            if request.stream:
                options = request.stream_options or StreamOptions()
                await _stream(generation, envelope, options, prompts=len(prompts), send=send)
            else:
                await _answer_whole(generation, envelope, prompts=len(prompts), send=send)

    def _submit(self, request: GenerationRequest, prompts: list[Prompt]) -> Generation:
        sequences = self._builder.sequences(request, prompts)
        limit = self._config.max_num_queued_reqs
        if limit is not None and self._loop.sequences + len(sequences) > limit:
            self._loop.metrics.rejections += 1
            raise vllm_error(503, "Service Unavailable", BUSY)
        return self._loop.submit(sequences)

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), TokenizeRequest, bad_request)
        self._builder.check_model(request.model)
        tokens = tokenize(request.text)
        strings = [detokenize([token]) for token in tokens] if request.return_token_strs else None
        context = self._config.context_tokens
        answer = {"count": len(tokens), "max_model_len": context, "tokens": tokens, "token_strs": strings}
        await send_json(send, 200, answer)

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), DetokenizeRequest, bad_request)
        await send_json(send, 200, {"prompt": detokenize(request.tokens)})

    async def _models(self) -> dict[str, Any]:
        card = {
            "id": self._config.model,
            "object": "model",
            "created": self._started_at,
            "owned_by": "vllm",
            "root": self._config.model,
            "parent": None,
            "max_model_len": self._config.context_tokens,
        }
        return {"object": "list", "data": [card]}

    async def _health(self) -> Response[bytes]:
        return Response(b"")

    async def _version(self) -> dict[str, str]:
        return {"version": VERSION}

    async def _load(self) -> dict[str, int]:
        return {"server_load": self._loop.requests}

    async def _metrics(self) -> Response[bytes]:
        return Response(self._loop.metrics.page(), media_type=CONTENT_TYPE)


async def _answer_whole(generation: Generation, envelope: Envelope, *, prompts: int, send: Send) -> None:
    await generation.finish()
    if generation.failed:
        raise _out_of_memory()
    if not generation.aborted:
        await send_json(send, 200, envelope.body(generation.choices, usage(generation.choices, prompts)))


async def _stream(
    generation: Generation, envelope: Envelope, options: StreamOptions, *, prompts: int, send: Send
) -> None:
    await start_events(send)
    template = envelope.template(with_usage=bool(options.continuous_usage_stats))
    await stream_tokens(generation, template, send, opening=envelope.role_events(len(generation.choices)))
    if generation.failed:
        await send_events(send, data_event(_out_of_memory().body) + DONE, last=True)
    elif not generation.aborted:
        counts = usage(generation.choices, prompts)
        ending = envelope.usage_event(counts) if options.include_usage else ""
        await send_events(send, ending + DONE, last=True)


def _out_of_memory() -> HttpError:
    """Return the error of a static batch that ran out of memory, with PyTorch's text."""
    return vllm_error(500, "InternalServerError", OUT_OF_MEMORY)
