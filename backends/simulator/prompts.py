"""Prompts: their number of tokens, and the hash by which their answer's length is looked up."""

from dataclasses import dataclass

from backends.simulator.text import count_tokens, detokenize
from backends.simulator.truth import AnswerLength
from backends.simulator.workload import Message, last_user_text, sha_of


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        sha: SHA-1 by which the answer's length is looked up.
        tokens: number of tokens.
        exact: whether `tokens` is exact, so that it takes precedence over the truth file.
        empty: whether there is nothing to generate from, not even a chat template.
    """

    sha: str
    tokens: int
    exact: bool = False
    empty: bool = False

    def tokens_given(self, answer: AnswerLength) -> int:
        """Return the number of prompt tokens. The truth file takes precedence over an estimate."""
        return self.tokens if self.exact else answer.input_tokens or self.tokens


def chat_prompt(messages: list[Message]) -> Prompt:
    """Return the prompt of a chat. The tokens of a chat template are not counted."""
    tokens = count_tokens("".join(message.text for message in messages))
    return Prompt(sha_of(last_user_text(messages)), tokens, empty=not messages)


def completion_prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    """Return the prompts of a completion request, which is a text, a list of tokens, or a list of either."""
    if isinstance(prompt, str):
        return [text_prompt(prompt)]
    if prompt and isinstance(prompt[0], int):
        return [_token_prompt([token for token in prompt if isinstance(token, int)])]
    return [
        text_prompt(item) if isinstance(item, str) else _token_prompt(item)
        for item in prompt
        if not isinstance(item, int)
    ]


def text_prompt(text: str) -> Prompt:
    """Return the prompt of a text."""
    return Prompt(sha_of(text), count_tokens(text), empty=not text)


def _token_prompt(tokens: list[int]) -> Prompt:
    return Prompt(sha_of(detokenize(tokens)), max(1, len(tokens)), exact=True, empty=not tokens)
