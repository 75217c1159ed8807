"""Batches for static engines: several text completions as one call, and the answer of the call as one answer each.

A static engine runs one padded batch at a time. A batch is one `/v1/completions` call with a list of prompts. Requests
that are equal except for the prompt share a call, and each gets the answer that it would have got alone. The engine
counts tokens for the whole call; this module divides the count among the requests as well as the answer allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import msgspec

from gateway.errors import ProtocolError
from gateway.protocol.answers import Usage, answer_reader, read_answer
from gateway.protocol.generation_request import MEMBER_FIELDS, GenerationRequest, RawFields

DONE = b"data: [DONE]\n\n"


class _BatchChoice(msgspec.Struct):
    text: str = ""
    index: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class _BatchAnswer(msgspec.Struct):
    choices: list[_BatchChoice] = []
    usage: Usage | None = None


class _RawChoices(msgspec.Struct):
    choices: list[RawFields]


_fields_decoder = msgspec.json.Decoder(RawFields)
_read_batch = answer_reader(_BatchAnswer)
_raw_choices_decoder = msgspec.json.Decoder(_RawChoices)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The part of a batch's answer that belongs to one request.

    `head` (the fields around the choices) and `choice` are JSON fields as the engine wrote them.
    """

    head: RawFields
    choice: RawFields
    finish_reason: str | None
    usage: Usage | None

    def whole(self) -> bytes:
        """Encode the result as the answer to a single request."""
        return msgspec.json.encode({**self.head, "choices": [self.choice], "usage": self._usage()})

    def stream(self, *, with_usage: bool) -> bytes:
        """Encode the result as a stream, with the whole text in one event."""
        no_usage: dict[str, object] = {"usage": None} if with_usage else {}
        events: list[dict[str, object]] = [{**self.head, "choices": [self.choice], **no_usage}]
        if with_usage:
            events.append({**self.head, "choices": [], "usage": self._usage()})
        return b"".join(b"data: " + msgspec.json.encode(event) + b"\n\n" for event in events) + DONE

    def _usage(self) -> dict[str, int] | None:
        if self.usage is None:
            return None
        prompt, completion = self.usage.prompt_tokens or 0, self.usage.completion_tokens or 0
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def batch_body(requests: Sequence[GenerationRequest]) -> bytes:
    """Return the body of one call for all requests: the first one's fields, all prompts, and no stream.

    >>> from gateway.protocol.openai import read_completion
    >>> one = read_completion(b'{"model": "m", "prompt": "a", "top_p": 1.50}')
    >>> batch_body([one, read_completion(b'{"prompt": "b", "model": "m", "top_p": 1.50}')])
    b'{"model":"m","prompt":["a","b"],"top_p":1.50}'
    """
    prompts = msgspec.Raw(b"[" + b",".join(bytes(request.fields()["prompt"]) for request in requests) + b"]")
    shared = {n: raw for n, raw in requests[0].fields().items() if n not in MEMBER_FIELDS or n == "prompt"}
    return msgspec.json.encode({**shared, "prompt": prompts})


def split_answer(body: bytes, prompt_tokens: Sequence[int], max_tokens: int | None) -> list[BatchResult]:
    """Return the result of each request, in the order of the prompts. Their tokens sum to the engine's count.

    Args:
        body: the engine's answer.
        prompt_tokens: estimated prompt tokens of each request.
        max_tokens: longest answer; the same for all requests of a batch.

    Raises:
        ProtocolError: the answer does not have one choice for each prompt.
    """
    try:
        answer = _read_batch(body)
        head, choices = _fields_decoder.decode(body), _raw_choices_decoder.decode(body).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        failure = read_answer(body).failure
        raise ProtocolError(f"The engine failed: {failure or 'its answer is not one of its API'}") from error
    indexes = [choice.index if choice.index is not None else at for at, choice in enumerate(answer.choices)]
    if sorted(indexes) != list(range(len(prompt_tokens))):
        raise ProtocolError(f"The engine gave {len(indexes)} answers to {len(prompt_tokens)} prompts")
    order = sorted(range(len(indexes)), key=indexes.__getitem__)
    usages = _usages(answer.usage, [answer.choices[at] for at in order], prompt_tokens, max_tokens)
    return [
        BatchResult(_head(head, number), _choice(choices[at]), answer.choices[at].finish_reason, usages[number])
        for number, at in enumerate(order)
    ]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a number into whole parts in proportion to weights (>= 0), by the largest remainder method.

    >>> apportion(10, [1, 1, 1]), apportion(7, [0, 0])
    ([4, 3, 3], [4, 3])
    """
    if not weights:
        return []
    if not sum(weights):
        weights = [1.0] * len(weights)
    whole = sum(weights)
    exact = [total * (weight / whole) for weight in weights]  # this order avoids overflow for tiny weights
    parts = [floor(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _usages(
    total: Usage | None, choices: Sequence[_BatchChoice], prompt_tokens: Sequence[int], max_tokens: int | None
) -> Sequence[Usage | None]:
    """Return the token counts of each request: from its choice, if every choice has them, else a share of the total."""
    own = [choice.usage or Usage() for choice in choices]
    whole = total or Usage()
    prompts = _reported_counts([usage.prompt_tokens for usage in own], whole.prompt_tokens)
    if prompts is None and whole.prompt_tokens is not None:
        prompts = apportion(whole.prompt_tokens, prompt_tokens)
    completions = _reported_counts([usage.completion_tokens for usage in own], whole.completion_tokens)
    if completions is None and whole.completion_tokens is not None:
        completions = _by_text(whole.completion_tokens, choices, max_tokens)
    if prompts is None or completions is None:
        return [None] * len(choices)
    return [Usage(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _reported_counts(own: Sequence[int | None], total: int | None) -> list[int] | None:
    """Return the counts that the choices report, scaled to the total; None if a choice reports none."""
    counts = [count for count in own if count is not None]
    if len(counts) < len(own):
        return None
    return counts if total is None else apportion(total, counts)


def _by_text(total: int, choices: Sequence[_BatchChoice], max_tokens: int | None) -> list[int]:
    """Divide the total by the bytes of the texts. A text that was cut at `max_tokens` has exactly that many."""
    parts = [max_tokens if choice.finish_reason == "length" else None for choice in choices]
    rest = total - sum(filter(None, parts))
    texts = [len(choice.text.encode(errors="surrogatepass")) for choice in choices]
    if rest < 0 or (rest > 0 and None not in parts):
        return apportion(total, texts)
    free = iter(apportion(rest, [size for size, part in zip(texts, parts, strict=True) if part is None]))
    return [next(free) if part is None else part for part in parts]


def _head(fields: RawFields, number: int) -> RawFields:
    """Return the fields around the choices, with an id of their own."""
    head = {name: raw for name, raw in fields.items() if name not in {"choices", "usage"}}
    if bytes(head.get("id", b"")).endswith(b'"'):
        head["id"] = msgspec.Raw(bytes(head["id"])[:-1] + b'-%d"' % number)
    return head


def _choice(fields: RawFields) -> RawFields:
    own = {name: raw for name, raw in fields.items() if name not in {"index", "usage"}}
    return {"index": msgspec.Raw(b"0"), **own}
