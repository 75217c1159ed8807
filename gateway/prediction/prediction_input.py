"""The input of a prediction: what the gateway can see of a request before it is answered."""

from dataclasses import dataclass, field
from hashlib import blake2b

from gateway.stored_text import stored_text

MAX_TEXT_CHARS = 8192
"""Characters of a text that prediction reads: half from its start, half from its end."""

UNNAMED = ""
"""The application or model of a request that names none."""


@dataclass(frozen=True, slots=True)
class HistoryKey:
    """The names under which an answer is remembered; `template` is the digest of the system prompt."""

    app: str
    model: str
    template: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionInput:
    """One request, as the gateway sees it; None is unknown.

    Attributes:
        text: the last user message, shortened by `bounded`.
        text_bytes: UTF-8 size of the whole prompt.
        last_user_bytes: UTF-8 size of the whole last user message.
        schema_bytes: size of the JSON schema of the response format.
        prompt_tokens: set only if the count is exact.
        key: the names under which the answer will be remembered.
    """

    app: str
    model: str
    user: str | None = None
    system: str | None = None
    text: str = ""
    text_bytes: int = 0
    last_user_bytes: int = 0
    message_count: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    sequences: int = 1
    stop_count: int = 0
    tools_bytes: int = 0
    schema_bytes: int = 0
    json_mode: bool = False
    reasoning_effort: str | None = None
    prompt_tokens: int | None = None
    key: HistoryKey = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Set `key` once, because it needs a digest of the system prompt. Its names are those of the history."""
        template = digest(self.system) if self.system else None
        user = None if self.user is None else stored_text(self.user)
        object.__setattr__(self, "key", HistoryKey(stored_text(self.app), stored_text(self.model), template, user))


def bounded(text: str) -> str:
    """Return the start and the end of a long text; the instruction is usually in one of them."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    return text[:half] + text[-half:]


def digest(text: str) -> str:
    """Return 16 hex digits that identify the text, the same in every process."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def utf8_bytes(text: str) -> int:
    """Return the size of the text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
