"""What the gateway can see of a request before it is answered: all that a prediction may use."""

from dataclasses import dataclass
from hashlib import blake2b

from backends.simulator.workload import WorkloadRow

MAX_TEXT_CHARS = 8192
"""Characters kept of a text that prediction reads: half from its start, half from its end."""

UNNAMED = ""
"""The application or model of a request that names none."""


@dataclass(frozen=True, slots=True)
class HistoryKey:
    """Under which names an answer is remembered; `template` is the digest of the system prompt."""

    app: str
    model: str
    template: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionInput:
    """One request, as the gateway sees it; None is unknown.

    `text` is the last user message, bounded by `bounded`; `last_user_bytes` is the UTF-8 size of the whole of it, and
    `text_bytes` that of the whole prompt. `schema_bytes` is the size of a response format's JSON schema.
    `prompt_tokens` is set only where the count is exact.

    >>> ask = Ask.of_row(WorkloadRow(app="chat", user_input="How tall is Everest?", output_tokens=12))
    >>> ask.text, ask.text_bytes, ask.key
    ('How tall is Everest?', 20, HistoryKey(app='chat', model='', template=None, user=None))
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

    @classmethod
    def of_row(cls, row: WorkloadRow) -> "PredictionInput":
        """Build from a past request; its token counts stay unread: they came with the answer."""
        text, system = row.text or "", _system_of(row)
        user_bytes = utf8_bytes(text)
        whole = sum(utf8_bytes(message.text) for message in row.messages) if row.messages else user_bytes
        return cls(
            app=row.app or UNNAMED,
            model=row.model or UNNAMED,
            user=row.user,
            system=system,
            text=bounded(text),
            text_bytes=whole + (utf8_bytes(row.system) if row.system else 0),
            last_user_bytes=user_bytes,
            message_count=len(row.messages) if row.messages else 1 + (system is not None),
        )

    @property
    def key(self) -> HistoryKey:
        """The names under which the answer will be remembered."""
        return HistoryKey(self.app, self.model, digest(self.system) if self.system else None, self.user)


def bounded(text: str) -> str:
    """Return the start and the end of a long text: what is asked stands in one of them."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    return text[:half] + text[-half:]


def digest(text: str) -> str:
    """Return 16 hex digits that stand for the text, the same in every process."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def utf8_bytes(text: str) -> int:
    """Return the size of the text's UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _system_of(row: WorkloadRow) -> str | None:
    if row.system:
        return row.system
    systems = [message.text for message in row.messages or () if message.role in {"system", "developer"}]
    return "\n".join(systems) or None
