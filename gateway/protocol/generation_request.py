"""One generation request: the fields that the gateway uses, and the body that goes to the engine.

The API's schema is not declared again here: an engine knows it better. The gateway decodes what prediction and
scheduling need, and checks only what they rely on. Every other byte of the body stays as the client wrote it.

A reader decodes the body once, and everything that follows uses the result. Only a request whose own fields must be
replaced or compared needs all of its top-level fields as raw JSON: they are decoded on first use, and then kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, NoReturn, TypeVar

import msgspec

from gateway.errors import InvalidRequest

T = TypeVar("T")

RawFields = dict[str, msgspec.Raw]
"""The top-level fields of a JSON object; each value is the JSON that its sender wrote."""

ABSENT = msgspec.Raw()
"""The default of a raw field: the body does not contain it."""

Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A limit on the length of an answer."""

MEMBER_FIELDS = frozenset({"prompt", "user", "safety_identifier", "stream", "stream_options"})
"""Fields that may differ between the requests of one batch."""

_SINGLE_REQUEST_FIELDS = {"n": b"1", "best_of": b"1", "echo": b"false", "logprobs": b"null"}
"""Fields that keep a request out of batches, unless they have the value that the API assumes without them."""

_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")
_raw_fields_decoder = msgspec.json.Decoder(RawFields)


class PromptPrefix(NamedTuple):
    """The first part of a prompt. Within one process, equal prefixes have equal keys.

    `share` is the part of the prompt's bytes that belongs to the prefix, from 0 to 1.
    """

    key: int
    share: float


class GenerationRequest(msgspec.Struct, kw_only=True):
    """The decoded body of one generation request.

    Attributes:
        body: the bytes that the client sent.
        model: the model's own name, once the model rules are applied.
        stream: whether the client wants a stream.
        includes_usage: whether the client of a stream wants the chunk with the token counts.
        user: the end user.
        max_tokens: longest answer that the client or the model's default allows.
        sequences: number of answers: prompts x n.
        text_bytes: size of the prompt's text in UTF-8.
        prompt_tokens: number of token ids, if the prompt consists of token ids.
        system: the system prompt.
        last_user: the last message of the user.
        message_count: number of messages.
        temperature: as the client sent it.
        stop_count: number of stop sequences.
        tools_bytes: size of the tools' JSON.
        schema_bytes: size of the response format's JSON.
        reasoning_effort: as the client sent it.
        message_prefixes: (key, share) of each prefix, the longest first; these keys do not depend on the model.
        batchable: whether the API allows several of its requests in one call.
        takes_priority: whether the API allows vLLM's `priority` in the body.
        length_field: the API's name for the longest answer.
        bound_tokens: longest answer that the gateway sets from its prediction, if there is no `max_tokens`.
        edits: fields that the gateway adds or replaces, as JSON.
    """

    body: bytes
    model: str
    stream: bool
    includes_usage: bool
    user: str | None
    max_tokens: int | None
    sequences: int
    text_bytes: int = 0
    prompt_tokens: int | None = None
    system: str | None = None
    last_user: str | None = None
    message_count: int = 1
    temperature: float | None = None
    stop_count: int = 0
    tools_bytes: int = 0
    schema_bytes: int = 0
    reasoning_effort: str | None = None
    message_prefixes: tuple[tuple[int, float], ...] = ()
    batchable: bool = False
    takes_priority: bool = True
    length_field: str = "max_tokens"
    bound_tokens: int | None = None
    edits: dict[str, bytes] = {}
    _raw_fields: RawFields | None = None

    @property
    def hides_usage(self) -> bool:
        """Whether the gateway asks for the token counts of a stream and removes them from the client's stream."""
        return self.stream and not self.includes_usage

    @property
    def answer_limit(self) -> int | None:
        """Longest answer that the engine may give, in tokens."""
        return self.max_tokens if self.bound_tokens is None else self.bound_tokens

    @property
    def prefixes(self) -> tuple[PromptPrefix, ...]:
        """Prompt prefixes that other requests for the same model may share, the longest first."""
        return tuple([PromptPrefix(hash((self.model, key)), share) for key, share in self.message_prefixes])

    def fields(self) -> RawFields:
        """Return the top-level fields of the body with the edits; every unedited value is the client's JSON."""
        if self._raw_fields is None:
            self._raw_fields = _raw_fields_decoder.decode(self.body)
        return {**self._raw_fields, **{name: msgspec.Raw(value) for name, value in self.edits.items()}}

    def bound_answer(self, tokens: int) -> None:
        """Limit an answer whose length neither the client nor the model's default limits."""
        self.bound_tokens = tokens
        self.edits[self.length_field] = b"%d" % tokens

    def batch_key(self) -> int | None:
        """Return a key that is equal for requests that may share one call; None if the request must be sent alone.

        A request is sent alone if it has several prompts, token ids or several answers, or wants an echo or log
        probabilities. Keys are equal within one process only.
        """
        if not self.batchable:
            return None
        common = []
        for name, raw in self.fields().items():
            value = bytes(raw)
            if name == "prompt" and not value.startswith(b'"'):
                return None
            if name in MEMBER_FIELDS or value == b"null":
                continue
            if name not in _SINGLE_REQUEST_FIELDS:
                common.append((name, value))
            elif value != _SINGLE_REQUEST_FIELDS[name]:
                return None
        return hash(tuple(sorted(common)))

    def upstream_body(self, priority: int | None = None) -> bytes:
        """Return the body for the engine.

        Args:
            priority: vLLM's `priority`, for an engine that orders its queue by it; a client's own value wins.
        """
        edits = self.edits
        if self.hides_usage:
            edits = {**edits, "stream_options": self._options_with_usage()}
        if priority is not None and self.takes_priority and not self._is_set("priority"):
            edits = {**edits, "priority": b"%d" % priority}
        if not edits:
            return self.body
        if not any(map(self._contains, edits)):
            return _append(self.body, edits)
        return msgspec.json.encode({**self.fields(), **{name: msgspec.Raw(value) for name, value in edits.items()}})

    def _options_with_usage(self) -> bytes:
        """Return the client's `stream_options` with `include_usage` set."""
        if not self._is_set("stream_options"):
            return b'{"include_usage":true}'
        options = _raw_fields_decoder.decode(self.fields()["stream_options"])
        return msgspec.json.encode({**options, "include_usage": True})

    def _contains(self, name: str) -> bool:
        """Return whether the client sent the field; every request has a `model`, perhaps with an escaped key.

        The search for the name avoids most decodes.
        """
        return name == "model" or (b'"%b"' % name.encode("ascii") in self.body and name in self.fields())

    def _is_set(self, name: str) -> bool:
        return self._contains(name) and bytes(self.fields()[name]).strip() != b"null"


@dataclass(frozen=True, slots=True)
class ModelRules:
    """The operator's rules for model names and answer lengths.

    Args:
        aliases: from a name that clients use to the model's own name.
        max_tokens: by model, the longest answer of a request that does not limit it.
        quantiles: by model, the quantile of the predicted length that limits the answer of such a request.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    quantiles: Mapping[str, float] = field(default_factory=dict)

    def resolve(self, model: str) -> str:
        """Return the model's own name.

        >>> ModelRules({"gpt-4o-mini": "llama"}).resolve("gpt-4o-mini")
        'llama'
        """
        return self.aliases.get(model, model)

    def apply(self, request: GenerationRequest) -> None:
        """Replace an alias by the model's own name, and set the model's default length if there is none."""
        model = self.resolve(request.model)
        if model != request.model:
            request.model = model
            request.edits["model"] = msgspec.json.encode(model)
        default = self.max_tokens.get(model)
        if request.max_tokens is None and default is not None:
            request.max_tokens = default
            request.edits[request.length_field] = b"%d" % default


def raw_fields(body: bytes) -> RawFields:
    """Return the top-level fields of a JSON object, each value as raw JSON.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    return decode(_raw_fields_decoder, body)


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes | msgspec.Raw, at: str = "") -> T:
    """Decode JSON that a client sent.

    Args:
        decoder: of the expected type.
        body: the request's body, or a part of it.
        at: the path of that part, for the error; empty for the whole body.

    Raises:
        InvalidRequest: not JSON, or a field is missing or has the wrong type; `param` names the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _reject(error, at)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error


def decode_each(decoder: "msgspec.json.Decoder[T]", items: list[msgspec.Raw], at: str) -> list[T]:
    """Decode the items of an array that is at the path `at`; raises as `decode` does."""
    try:
        return [decoder.decode(item) for item in items]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [decode(decoder, item, f"{at}[{i}]") for i, item in enumerate(items)]  # raises for the wrong item


def utf8_bytes(text: str) -> int:
    """Return the size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def number(value: object) -> float | None:
    """Return a JSON number as a float; None for another type, or a number that is too large for a float."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def size(raw: msgspec.Raw) -> int:
    """Return the bytes of a field's JSON; 0 if the field is absent or null."""
    return 0 if bytes(raw) == b"null" else len(bytes(raw))


def _append(body: bytes, edits: Mapping[str, bytes]) -> bytes:
    """Add fields at the end of a JSON object."""
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    added = b",".join([b'"%b":%b' % (name.encode(), value) for name, value in edits.items()])
    return b"%b%b%b%b" % (body[:end], comma, added, body[end:])


def _reject(error: msgspec.ValidationError, at: str) -> NoReturn:
    """Name the wrong field as OpenAI does: `messages[0].role`."""
    text = str(error)
    path = match["path"] if (match := _PATH.search(text)) else ""
    if missing := _MISSING.search(text):
        path = f"{path}.{missing['field']}".lstrip(".")
    path = f"{at}{path}" if path.startswith("[") else f"{at}.{path}".strip(".")
    where = f"{path}: " if path else ""
    raise InvalidRequest(where + _PATH.sub("", text), param=path or None) from error
