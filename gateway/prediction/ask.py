"""What the gateway can see of a request before it is answered: all that a prediction may use."""

from dataclasses import dataclass, replace

from backends.simulator.workload import WorkloadRow, last_user_text

MAX_TEXT_CHARS = 8192
"""Characters kept of a text that prediction reads: half from its start, half from its end."""

UNNAMED = ""
"""The application or model of a request that names none."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, as the gateway sees it; None is unknown.

    `text` is the last user message, `text_bytes` the UTF-8 size of the whole prompt, `schema_bytes` that of a
    response format's JSON schema. `prompt_tokens` is set only where the count is exact.

    >>> Ask(app="chat", model="llama", text="How tall is Everest?").text_bytes
    20
    """

    app: str
    model: str
    user: str | None = None
    system: str | None = None
    text: str = ""
    text_bytes: int = -1
    last_user_bytes: int = -1
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

    def __post_init__(self) -> None:
        """Measure what was not given and bound the texts."""
        last_user_bytes = utf8_size(self.text) if self.last_user_bytes < 0 else self.last_user_bytes
        text_bytes = last_user_bytes + utf8_size(self.system or "") if self.text_bytes < 0 else self.text_bytes
        object.__setattr__(self, "last_user_bytes", last_user_bytes)
        object.__setattr__(self, "text_bytes", text_bytes)
        object.__setattr__(self, "text", bounded(self.text))

    @classmethod
    def of_row(cls, row: WorkloadRow) -> "Ask":
        """Build from a row of past requests; its counts of tokens stay unread, they come with the answer."""
        messages = row.messages or ()
        systems = [message.text for message in messages if message.role in {"system", "developer"}]
        text = last_user_text(messages) if messages else (row.text or "")
        ask = cls(
            app=row.app or UNNAMED,
            model=row.model or UNNAMED,
            user=row.user,
            system=row.system or "\n".join(systems) or None,
            text=text,
            message_count=max(1, len(messages)),
        )
        return replace(ask, text_bytes=sum(utf8_size(m.text) for m in messages)) if messages else ask


def bounded(text: str) -> str:
    """Return the start and the end of a long text: instructions stand in one of them."""
    if len(text) <= MAX_TEXT_CHARS:
        return text
    half = MAX_TEXT_CHARS // 2
    return text[:half] + text[-half:]


def utf8_size(text: str) -> int:
    """Return the bytes of the text's UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
