"""Several text completions as one call, and its one answer as several: what a static engine takes and gives.

A static engine runs one padded batch at a time, and a batch is one `/v1/completions` call with a list of prompts. So
requests that agree in all but the prompt go together, and each gets the answer that it would have got alone. The engine
counts tokens for the whole call; what each used of them is told apart as well as the answer allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import msgspec

from gateway.errors import ProtocolError
from gateway.protocol.answers import Usage, read_answer

_OWN = frozenset({"prompt", "user", "safety_identifier", "stream", "stream_options"})
"""Fields that the members of a batch may differ in."""

_ALONE = {"n": b"1", "best_of": b"1", "echo": b"false", "logprobs": b"null"}
"""Fields that make a request one of its own, unless they say what they would say by being left out."""

DONE = b"data: [DONE]\n\n"

_Fields = dict[str, msgspec.Raw]


class _Choice(msgspec.Struct):
    text: str
    index: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: Usage | None = None


class _Envelope(msgspec.Struct):
    choices: list[_Fields]


_fields_decoder = msgspec.json.Decoder(_Fields)
_answer_decoder = msgspec.json.Decoder(_Answer)
_envelope_decoder = msgspec.json.Decoder(_Envelope)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One member's part of a batch's answer; `head` and `choice` are its JSON fields as the engine wrote them."""

    head: _Fields
    choice: _Fields
    finish_reason: str | None
    usage: Usage | None

    def whole(self) -> bytes:
        """Write it as the answer to a request of its own."""
        return msgspec.json.encode({**self.head, "choices": [self.choice], "usage": self._usage()})

    def stream(self, *, with_usage: bool) -> bytes:
        """Write it as a stream: all of the text in one event, since it came in one piece."""
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


def batch_key(body: bytes) -> int | None:
    """Return what the bodies of requests that may share a call have in common; None for one that has to go alone.

    Equal within one process. Alone go several prompts, token ids, several answers, an echo and log probabilities.

    Args:
        body: a `/v1/completions` body that was read well before.

    >>> key = batch_key(b'{"model": "m", "prompt": "a", "max_tokens": 5, "user": "u"}')
    >>> key == batch_key(b'{"max_tokens": 5, "prompt": "b", "model": "m", "stream": true, "n": 1}')
    True
    >>> key == batch_key(b'{"model": "m", "prompt": "a", "max_tokens": 6}')
    False
    >>> batch_key(b'{"model": "m", "prompt": "a", "n": 2}'), batch_key(b'{"model": "m", "prompt": ["a"]}')
    (None, None)
    """
    common = []
    for name, raw in _fields_decoder.decode(body).items():
        value = bytes(raw)
        if name == "prompt" and not value.startswith(b'"'):
            return None
        if name in _OWN or value == b"null":
            continue
        if name not in _ALONE:
            common.append((name, value))
        elif value != _ALONE[name]:
            return None
    return hash(tuple(sorted(common)))


def batch_body(bodies: Sequence[bytes]) -> bytes:
    """Return the body of one call for all: the first one's, with everybody's prompts, and no stream.

    >>> batch_body([b'{"model": "m", "prompt": "a", "top_p": 1.50}', b'{"prompt": "b", "model": "m", "top_p": 1.50}'])
    b'{"model":"m","prompt":["a","b"],"top_p":1.50}'
    """
    members = [_fields_decoder.decode(body) for body in bodies]
    prompts = msgspec.Raw(b"[" + b",".join(bytes(member["prompt"]) for member in members) + b"]")
    shared = {name: raw for name, raw in members[0].items() if name not in _OWN or name == "prompt"}
    return msgspec.json.encode({**shared, "prompt": prompts})


def split_answer(body: bytes, prompt_tokens: Sequence[int], max_tokens: int | None) -> list[BatchResult]:
    """Return each member's part of the answer, in the prompts' order. Their tokens sum to what the engine counted.

    Args:
        body: the engine's answer.
        prompt_tokens: of each member, as predicted.
        max_tokens: of every member.

    Raises:
        ProtocolError: it is no answer to so many prompts.
    """
    try:
        answer = _answer_decoder.decode(body)
        head, choices = _fields_decoder.decode(body), _envelope_decoder.decode(body).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        failed = read_answer(body)
        failure = failed.failure if failed else None
        raise ProtocolError(f"The engine failed: {failure or 'its answer is not one of its API'}") from error
    told = [choice.index if choice.index is not None else at for at, choice in enumerate(answer.choices)]
    if sorted(told) != list(range(len(prompt_tokens))):
        raise ProtocolError(f"The engine gave {len(told)} answers to {len(prompt_tokens)} prompts")
    order = sorted(range(len(told)), key=told.__getitem__)
    usages = _usages(answer.usage, [answer.choices[at] for at in order], prompt_tokens, max_tokens)
    return [
        BatchResult(_head(head, number), _choice(choices[at]), answer.choices[at].finish_reason, usages[number])
        for number, at in enumerate(order)
    ]


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Divide a number in proportion to weights (>= 0), into whole numbers that sum to it: by largest remainder.

    >>> apportion(10, [1, 1, 1]), apportion(7, [0, 0])
    ([4, 3, 3], [4, 3])
    """
    if not weights:
        return []
    if not sum(weights):
        weights = [1.0] * len(weights)
    whole = sum(weights)
    exact = [total * (weight / whole) for weight in weights]  # in this order: what is next to nothing overflows else
    parts = [floor(part) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def _usages(
    total: Usage | None, choices: Sequence[_Choice], prompt_tokens: Sequence[int], max_tokens: int | None
) -> Sequence[Usage | None]:
    """Count each member's tokens: as its choice tells them, if all do, else as a part of the whole call's."""
    own = [choice.usage or Usage() for choice in choices]
    whole = total or Usage()
    prompts = _told([usage.prompt_tokens for usage in own], whole.prompt_tokens)
    if prompts is None and whole.prompt_tokens is not None:
        prompts = apportion(whole.prompt_tokens, prompt_tokens)
    completions = _told([usage.completion_tokens for usage in own], whole.completion_tokens)
    if completions is None and whole.completion_tokens is not None:
        completions = _by_text(whole.completion_tokens, choices, max_tokens)
    if prompts is None or completions is None:
        return [None] * len(choices)
    return [Usage(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _told(own: Sequence[int | None], total: int | None) -> list[int] | None:
    """What every choice says of itself, made to sum to what the call says; None where one says nothing."""
    counts = [count for count in own if count is not None]
    if len(counts) < len(own):
        return None
    return counts if total is None else apportion(total, counts)


def _by_text(total: int, choices: Sequence[_Choice], max_tokens: int | None) -> list[int]:
    """Divide by the texts' bytes; of those that were cut at `max_tokens` the count is known."""
    parts = [max_tokens if choice.finish_reason == "length" else None for choice in choices]
    rest = total - sum(filter(None, parts))
    texts = [len(choice.text.encode(errors="surrogatepass")) for choice in choices]
    if rest < 0 or (rest > 0 and None not in parts):
        return apportion(total, texts)
    free = iter(apportion(rest, [size for size, part in zip(texts, parts, strict=True) if part is None]))
    return [next(free) if part is None else part for part in parts]


def _head(fields: _Fields, number: int) -> _Fields:
    """The fields around the choices, under an id of their own."""
    head = {name: raw for name, raw in fields.items() if name not in {"choices", "usage"}}
    if bytes(head.get("id", b"")).endswith(b'"'):
        head["id"] = msgspec.Raw(bytes(head["id"])[:-1] + b'-%d"' % number)
    return head


def _choice(fields: _Fields) -> _Fields:
    own = {name: raw for name, raw in fields.items() if name not in {"index", "usage"}}
    return {"index": msgspec.Raw(b"0"), **own}
