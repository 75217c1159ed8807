"""One generation request: the fields that the gateway uses, and the body that goes to the engine.

The API's schema is not declared again here: an engine knows it better. The gateway decodes what prediction and
scheduling need. A field of another type or value than expected counts as absent, and the engine decides about it: the
gateway rejects only a body that it cannot forward. Every byte of the body stays as the client wrote it.

A reader decodes the body once, and everything that follows uses the result. Only a request whose own fields must be
replaced or compared needs all of its top-level fields as raw JSON: they are decoded on first use, and then kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import msgspec

from gateway.errors import BodyTooLarge, InvalidRequest

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

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

MAX_MESSAGES = 16_384
"""Most messages, or prompts, of one request."""

MAX_VALUES = 2 * 1024 * 1024
"""Most commas in one body. Each may separate two values, and a decoded value takes up to 50 times as much memory as its
JSON. Text of this many commas would be larger than a prompt."""

MAX_PARTS = 65_536
"""Most content parts in the messages of one request."""

_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*+)(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
"""Half of an escaped character, after escaped backslashes. The search takes linear time."""

_BOM = b"\xef\xbb\xbf"
_raw_fields_decoder = msgspec.json.Decoder(RawFields)
_raw_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])


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
        includes_usage: whether the client of a stream gets the chunk with the token counts, if the engine sends it.
        user: the end user.
        max_tokens: longest answer that the client or the model's default allows; None if it is not a valid number.
        limits_answer: whether the client has set a longest answer, of whatever type.
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
        edits: fields that the gateway adds or replaces, as JSON; None removes the field.
    """

    body: bytes
    model: str
    stream: bool
    includes_usage: bool
    user: str | None
    max_tokens: int | None
    sequences: int
    limits_answer: bool = False
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
    edits: dict[str, bytes | None] = {}
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
        return edited(self._own_fields(), self.edits)

    def _own_fields(self) -> RawFields:
        if self._raw_fields is None:
            self._raw_fields = _raw_fields_decoder.decode(self.body)
        return self._raw_fields

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

    def upstream_body(self, priority: int | None = None, *, asks_usage: bool = True) -> bytes:
        """Return the body for the engine.

        Args:
            priority: vLLM's `priority`, for an engine that orders its queue by it; it replaces a client's own value.
            asks_usage: ask for the token counts of a stream if the client does not.
        """
        edits = self.edits
        if asks_usage and self.hides_usage:
            edits = {**edits, "stream_options": self._options_with_usage()}
        if priority is not None and self.takes_priority:
            edits = {**edits, "priority": b"%d" % priority}
        if not edits:
            return self.body
        if not any(map(self._contains, edits)):
            return _append(self.body, edits)
        return msgspec.json.encode(edited(self.fields(), edits))

    def _options_with_usage(self) -> bytes:
        """Return the client's `stream_options` with `include_usage` set."""
        if not self._is_set("stream_options"):
            return b'{"include_usage":true}'
        options = _raw_fields_decoder.decode(self._own_fields()["stream_options"])
        return msgspec.json.encode({**options, "include_usage": True})

    def _contains(self, name: str) -> bool:
        """Return whether the client sent the field, perhaps with an escaped key; the model is always replaced.

        The search for the name avoids most decodes. It also looks for the start of an escaped ASCII letter.
        """
        if name == "model":
            return True
        if b'"%b"' % name.encode("ascii") not in self.body and b"\\u00" not in self.body:
            return False
        return name in self._own_fields()

    def _is_set(self, name: str) -> bool:
        return self._contains(name) and bytes(self._own_fields()[name]).strip() != b"null"


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
        if not request.limits_answer and default is not None:
            request.max_tokens = default
            request.edits[request.length_field] = b"%d" % default


def raw_fields(body: bytes) -> RawFields:
    """Return the top-level fields of a JSON object, each value as raw JSON.

    Raises:
        InvalidRequest: the body is not a JSON object.
    """
    return decode(_raw_fields_decoder, body)


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes | msgspec.Raw) -> T:
    """Decode JSON that a client sent.

    Raises:
        InvalidRequest: not a JSON object in UTF-8, or nested too deeply.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidRequest("The body is not a JSON object") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error


class _Routing(msgspec.Struct):
    """The fields of a body that the gateway needs before all others.

    Attributes:
        model: as the client sent it.
        priority: of vLLM; a client must not choose it.
        request_id: of vLLM; it must be unique, so a client must not choose it.
    """

    model: Any = None
    priority: msgspec.Raw = ABSENT
    request_id: msgspec.Raw = ABSENT

    def edits(self, request_id: str) -> dict[str, bytes | None]:
        edits: dict[str, bytes | None] = {}
        if self.model is None or self.model == "":
            edits["model"] = None
        if bytes(self.priority):
            edits["priority"] = None
        if bytes(self.request_id):
            edits["request_id"] = msgspec.json.encode(request_id)
        return edits


_routing_decoder = msgspec.json.Decoder(_Routing)


def read_routing(body: bytes, request_id: str) -> tuple[str | None, dict[str, bytes | None], bytes]:
    """Read the fields that route a request, before all others.

    Args:
        body: as the client sent it.
        request_id: the gateway's own id of the request.

    Returns:
        The name of the model, or None if the body has none or something else in its place; the fields to replace or
        remove (None) before an engine gets the body, with `model` among them if the body has none; and the body without
        what strict JSON parsers reject. A byte order mark is removed from it. Half of a character (an escaped surrogate
        without the other one) is replaced. The rest of the body is only checked for being JSON.

    Raises:
        InvalidRequest: the body is not a JSON object in UTF-8.
        BodyTooLarge: more than `MAX_VALUES` commas.

    >>> read_routing(b'{"model": "m", "priority": 1}', "ours")[:2]
    ('m', {'priority': None})
    """
    check_size(body)
    try:
        routing = _routing_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _SURROGATES.sub(rb"\1\\ufffd", body.removeprefix(_BOM))
        routing = decode(_routing_decoder, body)
    model = routing.model if isinstance(routing.model, str) and routing.model else None
    return model, routing.edits(request_id), body


def check_size(body: bytes) -> None:
    """Raise `BodyTooLarge` if the body may have more than `MAX_VALUES` values."""
    if len(body) > MAX_VALUES and body.count(b",") > MAX_VALUES:
        raise BodyTooLarge(f"The body has more than {MAX_VALUES} commas")


def check_count(count: int, limit: int, what: str) -> None:
    """Raise `BodyTooLarge` if `count` is over the limit; `what` names the field."""
    if count > limit:
        raise BodyTooLarge(f"{what}: {count} items; at most {limit} are allowed", param=what)


class Reader(Generic[S]):
    """Decodes JSON objects that clients sent; every field of `struct` needs a default.

    A field of an unexpected type or value gets its default.
    """

    def __init__(self, struct: type[S]) -> None:
        self._decoder = msgspec.json.Decoder(struct)
        self._struct = struct
        fields = msgspec.structs.fields(struct)
        self._fields = {each.encode_name: (each.name, msgspec.json.Decoder(each.type)) for each in fields}

    def read(self, body: bytes) -> tuple[S, RawFields]:
        """Return the object, and the JSON of each field that has an unexpected type or value.

        Raises:
            InvalidRequest: not a JSON object in UTF-8, or nested too deeply.
        """
        try:
            return self._decoder.decode(body), {}
        except RecursionError as error:
            raise InvalidRequest("The body is nested too deeply") from error
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._read_each(body)

    def _read_each(self, body: bytes) -> tuple[S, RawFields]:
        try:
            body.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("The body is not valid JSON: it is not UTF-8") from error
        odd, known = {}, {}
        for key, raw in decode(_raw_fields_decoder, body).items():
            if key not in self._fields:
                continue
            name, decoder = self._fields[key]
            try:
                known[name] = decoder.decode(raw)
            except RecursionError as error:
                raise InvalidRequest("The body is nested too deeply") from error
            except (msgspec.DecodeError, UnicodeDecodeError):
                odd[name] = raw
        return self._struct(**known), odd


def odd_value(raw: bytes | msgspec.Raw) -> object:
    """Return the value of JSON that has an unexpected shape; None if it cannot be decoded."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def odd_fields(raw: msgspec.Raw) -> RawFields | None:
    """Return the fields of a JSON object; None if the JSON is something else."""
    try:
        return _raw_fields_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def odd_items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the items of a JSON array; other JSON counts as its own only item."""
    try:
        return _raw_items_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [raw]


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


def edited(fields: RawFields, edits: Mapping[str, bytes | None]) -> RawFields:
    """Return the fields with the edits; None removes a field."""
    changed = {**fields, **{name: msgspec.Raw(value) for name, value in edits.items() if value is not None}}
    return {name: raw for name, raw in changed.items() if edits.get(name, raw) is not None}


def _append(body: bytes, edits: Mapping[str, bytes | None]) -> bytes:
    """Add fields at the end of a JSON object."""
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    added = b",".join([b'"%b":%b' % (name.encode(), value) for name, value in edits.items() if value is not None])
    return b"%b%b%b%b" % (body[:end], comma if added else b"", added, body[end:])
