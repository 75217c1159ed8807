"""Token events made from a template: the JSON around a token is encoded once per stream, not once per token."""

from dataclasses import dataclass
from typing import Protocol

import msgspec
from litestar.types import Send

from backends.simulator.asgi import send_events
from backends.simulator.loop import Choice, Generation
from backends.simulator.text import WORDS

DONE = "data: [DONE]\n\n"


class EventTemplate(Protocol):
    """The format of one API's token events."""

    def event(self, index: int, choice: Choice, token: int) -> str:
        """Return the event of the token with index `token` of a choice."""
        ...


@dataclass(frozen=True, slots=True)
class ChunkTemplate:
    """An OpenAI chunk as four constant parts: before the index, before the token, after the token, and the end."""

    opening: str
    before_text: str
    after_text: str
    closing: str
    with_usage: bool = False

    def event(self, index: int, choice: Choice, token: int) -> str:
        """Return the chunk of one token. The last chunk has the finish reason."""
        last = token == choice.sequence.answer_tokens - 1
        reason = f'"{choice.finish_reason}"' if last else "null"
        usage = f',"usage":{_usage_json(choice.sequence.prompt_tokens, token + 1)}' if self.with_usage else ""
        word = WORDS[token % len(WORDS)]
        return f"{self.opening}{index}{self.before_text}{word}{self.after_text}{reason}{self.closing}{usage}}}\n\n"


async def stream_tokens(generation: Generation, template: EventTemplate, send: Send, *, opening: str = "") -> None:
    """Send each token when it is produced, until the generation is done. `opening` is sent before the first token."""
    while not generation.done:
        await generation.changed()
        events = [
            template.event(index, choice, token)
            for index, choice in enumerate(generation.choices)
            for token in choice.take_unsent()
        ]
        if events:
            await send_events(send, opening + "".join(events))
            opening = ""


def data_event(body: object) -> str:
    """Return an event with JSON data."""
    return f"data: {msgspec.json.encode(body).decode()}\n\n"


def _usage_json(prompt_tokens: int, completion_tokens: int) -> str:
    total = prompt_tokens + completion_tokens
    return f'{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{completion_tokens}}}'
