"""How many tokens a prompt will be, from its bytes: the engine has the tokenizer, the gateway learns the ratio."""

from collections import OrderedDict
from dataclasses import dataclass

PRIOR_BYTES_PER_TOKEN = 4.0
PRIOR_TOKENS = 200.0
"""Weight of the level above, in tokens seen."""

MEMORY_TOKENS = 200_000.0
"""A ratio forgets at this many tokens: prompts change."""

MAX_RATIOS = 10_000


@dataclass(slots=True)
class _Ratio:
    bytes: float = 0.0
    tokens: float = 0.0

    def shrunk_to(self, bytes_per_token: float) -> float:
        return (self.bytes + PRIOR_TOKENS * bytes_per_token) / (self.tokens + PRIOR_TOKENS)


class PromptTokens:
    """Bytes per token, learned per model and per application on it from the engines' `usage`.

    >>> prompt_tokens = PromptTokens()
    >>> prompt_tokens.estimate("chat", "llama", 4000)
    1000
    >>> for _ in range(100):
    ...     prompt_tokens.learn_one("chat", "llama", 2000, 1000)
    >>> prompt_tokens.estimate("chat", "llama", 4000)
    2000
    """

    def __init__(self) -> None:
        self._ratios: OrderedDict[tuple[str, ...], _Ratio] = OrderedDict()

    def estimate(self, app: str, model: str, text_bytes: int) -> int:
        """Estimate the prompt's tokens, at least one."""
        ratio = PRIOR_BYTES_PER_TOKEN
        for key in ((model,), (model, app)):
            if key in self._ratios:
                ratio = self._ratios[key].shrunk_to(ratio)
        return max(1, round(text_bytes / ratio))

    def learn_one(self, app: str, model: str, text_bytes: int, tokens: int) -> None:
        """Learn from an engine's count; a prompt without text (token ids, images alone) teaches nothing."""
        if text_bytes <= 0 or tokens <= 0:
            return
        for key in ((model,), (model, app)):
            self._learn(key, float(text_bytes), float(tokens))

    def _learn(self, key: tuple[str, ...], text_bytes: float, tokens: float) -> None:
        ratio = self._ratios.setdefault(key, _Ratio())
        self._ratios.move_to_end(key)
        if len(self._ratios) > MAX_RATIOS:
            self._ratios.popitem(last=False)
        kept = MEMORY_TOKENS / (MEMORY_TOKENS + tokens)
        ratio.bytes = (ratio.bytes + text_bytes) * kept
        ratio.tokens = (ratio.tokens + tokens) * kept
