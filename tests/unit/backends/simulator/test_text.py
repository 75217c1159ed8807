from typing import Any

from backends.simulator.prompts import completion_prompts
from backends.simulator.text import count_tokens, detokenize, tokenize


def test_detokenize_reverses_tokenize():
    text = "naïve 😀 text, of any length"

    assert detokenize(tokenize(text)) == text
    assert len(tokenize(text)) == count_tokens(text)


def test_detokenize_accepts_any_integers():
    assert isinstance(detokenize([-1, 0, 2**40, 7]), str)


def test_tokens_of_a_text_are_looked_up_as_that_text():
    prompts: list[Any] = ["hello", tokenize("hello"), [tokenize("hello")]]
    as_text, as_tokens, as_list = (completion_prompts(prompt)[0] for prompt in prompts)

    assert as_text.sha == as_tokens.sha == as_list.sha


def test_list_of_prompts_keeps_its_order():
    assert [prompt.tokens for prompt in completion_prompts(["a" * 8, "a" * 4])] == [2, 1]
