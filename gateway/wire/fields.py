"""The fields of a request that the gateway uses; everything else stays in the bytes, untouched.

The API's schema is not declared again here: an engine knows it better. What is decoded is what prediction and
scheduling need, and it is checked only as far as they rely on it.
"""

import re
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import msgspec

from gateway.errors import InvalidRequest

T = TypeVar("T")

MAX_SEQUENCES = 1024
"""Upper bound on the answers that one request asks for: prompts x n."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation request asks for.

    `text_bytes` is the UTF-8 size of the prompt's text; `prompt_tokens` is set where the prompt came as token ids.
    `sequences` counts the answers asked for. `includes_usage` tells that a stream's client wants the usage chunk.
    """

    model: str
    stream: bool
    includes_usage: bool
    user: str | None
    max_tokens: int | None
    sequences: int
    text_bytes: int
    prompt_tokens: int | None
    system: str | None
    last_user: str | None


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    n: int | None = None
    max_tokens: int | None = None


class _Chat(_Common, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: int | None = None
    tools: msgspec.Raw | None = None


class _Completion(_Common, kw_only=True):
    prompt: str | list[str | int | list[int]]


_chat_decoder = msgspec.json.Decoder(_Chat)
_completion_decoder = msgspec.json.Decoder(_Completion)
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_chat(body: bytes) -> Generation:
    """Read a `/v1/chat/completions` body.

    Raises:
        InvalidRequest: not JSON, or a field that we use is missing or of the wrong type; `param` names it.
    """
    chat = _decode(_chat_decoder, body)
    texts = [_text(message.content) for message in chat.messages]
    system = "\n".join(t for t, m in zip(texts, chat.messages, strict=True) if m.role in {"system", "developer"})
    last_user = next(
        (t for t, m in zip(reversed(texts), reversed(chat.messages), strict=True) if m.role == "user"), None
    )
    extra = _size(chat.tools) + sum(_size(message.tool_calls) for message in chat.messages)
    limit = chat.max_completion_tokens if chat.max_completion_tokens is not None else chat.max_tokens
    _require_positive(limit, "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens")
    return _generation(
        chat,
        max_tokens=limit,
        prompts=1,
        text_bytes=sum(map(_utf8_bytes, texts)) + extra,
        system=system or None,
        last_user=last_user,
    )


def read_completion(body: bytes) -> Generation:
    """Read a `/v1/completions` body: a prompt, a list of prompts, token ids, or a list of them.

    Raises:
        InvalidRequest: as for `read_chat`.
    """
    completion = _decode(_completion_decoder, body)
    prompt = [completion.prompt] if isinstance(completion.prompt, str) else completion.prompt
    if not prompt:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    _require_positive(completion.max_tokens, "max_tokens")
    texts = [item for item in prompt if isinstance(item, str)]
    token_ids = sum(1 for item in prompt if isinstance(item, int))
    token_lists = [len(item) for item in prompt if isinstance(item, list)]
    if (bool(texts) + bool(token_ids) + bool(token_lists)) != 1:
        raise InvalidRequest("prompt mixes text and token ids", param="prompt")
    return _generation(
        completion,
        max_tokens=completion.max_tokens,
        prompts=1 if token_ids else len(prompt),
        text_bytes=sum(map(_utf8_bytes, texts)),
        prompt_tokens=None if texts else token_ids + sum(token_lists),
        last_user=texts[-1] if texts else None,
    )


def ask_for_usage(body: bytes) -> bytes:
    """Return the body of a streaming request with `stream_options.include_usage` set, every other value byte for byte.

    >>> ask_for_usage(b'{"model": "m", "x": 1.50}')
    b'{"model":"m","x":1.50,"stream_options":{"include_usage":true}}'
    """
    fields = _decode(_object_decoder, body)
    options = _object_decoder.decode(fields.get("stream_options") or b"{}") if _is_set(fields, "stream_options") else {}
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def _is_set(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]).strip() != b"null"


def _generation(
    common: _Common,
    *,
    max_tokens: int | None,
    prompts: int,
    text_bytes: int,
    prompt_tokens: int | None = None,
    system: str | None = None,
    last_user: str | None = None,
) -> Generation:
    _require_positive(common.n, "n")
    sequences = prompts * (common.n or 1)
    if sequences > MAX_SEQUENCES:
        raise InvalidRequest(f"{sequences} answers asked for; at most {MAX_SEQUENCES}", param="n")
    options = common.stream_options
    return Generation(
        model=common.model,
        stream=bool(common.stream),
        includes_usage=bool(options and options.include_usage),
        user=common.user or common.safety_identifier or None,
        max_tokens=max_tokens,
        sequences=sequences,
        text_bytes=text_bytes,
        prompt_tokens=prompt_tokens,
        system=system,
        last_user=last_user,
    )


def _require_positive(value: int | None, field: str) -> None:
    if value is not None and value < 1:
        raise InvalidRequest(f"{field} must be at least 1, got {value}", param=field)


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _size(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None else len(bytes(raw))


def _decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _reject(error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error


_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def _reject(error: msgspec.ValidationError) -> NoReturn:
    """Name the field at fault as OpenAI does: `messages[0].role`."""
    text = str(error)
    path = match["path"] if (match := _PATH.search(text)) else ""
    if missing := _MISSING.search(text):
        path = f"{path}.{missing['field']}".lstrip(".")
    where = f"{path}: " if path else ""
    raise InvalidRequest(where + _PATH.sub("", text), param=path or None) from error
