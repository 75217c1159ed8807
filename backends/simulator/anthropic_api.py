"""Anthropic's routes, as vLLM serves them."""

from collections.abc import Callable
from uuid import uuid4

from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from backends.simulator.anthropic_schema import CountTokensRequest, MessageEnvelope, MessagesRequest, to_anthropic_error
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
from backends.simulator.loop import EngineLoop, Generation
from backends.simulator.prompts import Prompt, chat_prompt
from backends.simulator.sse import stream_tokens
from backends.simulator.vllm_schema import ChatRequest, GenerationRequest, bad_request

Submit = Callable[[GenerationRequest, list[Prompt]], Generation]

OUT_OF_MEMORY = "CUDA out of memory: the batch outgrew the KV memory."


class AnthropicApi:
    """`/v1/messages` and `/v1/messages/count_tokens`. Both convert their request to a chat."""

    def __init__(self, loop: EngineLoop, submit: Submit) -> None:
        self._loop = loop
        self._submit = submit

    def routes(self) -> list[ASGIRouteHandler]:
        """Return the route handlers."""
        return [post("/v1/messages", self._messages), post("/v1/messages/count_tokens", self._count_tokens)]

    async def _messages(self, scope: Scope, receive: Receive, send: Send) -> None:
        chat = decode(await read_body(receive), MessagesRequest, bad_request).as_chat()
        generation = self._generation(chat)
        envelope = MessageEnvelope(f"chatcmpl-{header(scope, b'x-request-id') or uuid4().hex}", chat.model or "")
        async with aborted_on_disconnect(self._loop, generation, receive):
            if chat.stream:
                await _stream(generation, envelope, send)
            else:
                await _answer_whole(generation, envelope, send)

    async def _count_tokens(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = decode(await read_body(receive), CountTokensRequest, bad_request)
        chat = MessagesRequest(model=request.model, messages=request.messages, max_tokens=1, system=request.system)
        tokens = chat_prompt(chat.as_chat().messages).tokens
        await send_json(send, 200, {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}})

    def _generation(self, chat: ChatRequest) -> Generation:
        try:
            return self._submit(chat, [chat_prompt(chat.messages)])
        except HttpError as error:
            raise to_anthropic_error(error) from error


async def _answer_whole(generation: Generation, envelope: MessageEnvelope, send: Send) -> None:
    await generation.finish()
    if generation.failed:
        raise HttpError(500, {"type": "error", "error": {"type": "InternalServerError", "message": OUT_OF_MEMORY}})
    if not generation.aborted:
        await send_json(send, 200, envelope.body(generation.choices[0]))


async def _stream(generation: Generation, envelope: MessageEnvelope, send: Send) -> None:
    await start_events(send)
    choice = generation.choices[0]
    await stream_tokens(generation, envelope, send, opening=envelope.opening(choice))
    if generation.failed:
        await send_events(send, envelope.failure(OUT_OF_MEMORY), last=True)
    elif not generation.aborted:
        await send_events(send, envelope.ending(choice), last=True)
