"""A tokenizer without a vocabulary: every four bytes of UTF-8 are a token, and their value is its id."""

from collections.abc import Iterable

BYTES_PER_TOKEN = 4

_LOREM = """
lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua
enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute irure in
reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt
culpa qui officia deserunt mollit anim id est laborum
"""

WORDS = tuple(f" {word}" for word in _LOREM.split())
"""Token `i` of every answer is word `i` modulo their number; a word is ASCII and needs no escape in JSON."""

_ONE_ROUND = "".join(WORDS)


def tokenize(text: str) -> list[int]:
    """Return the text's token ids.

    >>> tokenize("hello")
    [1751477356, 111]
    """
    data = text.encode("utf-8", "replace")
    return [int.from_bytes(data[at : at + BYTES_PER_TOKEN]) for at in range(0, len(data), BYTES_PER_TOKEN)]


def detokenize(tokens: Iterable[int]) -> str:
    """Return the text of `tokenize`'s ids; other ids give a text too, so that it can stand for them.

    >>> detokenize(tokenize("hello"))
    'hello'
    """
    return b"".join(_bytes_of(token) for token in tokens).decode("utf-8", "replace")


def count_tokens(text: str) -> int:
    """Return how many tokens the text has, and 1 for an empty one: no prompt is empty once a template is around it.

    >>> count_tokens("hello")
    2
    """
    return max(1, -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))


def text_of(tokens: int) -> str:
    """Return an answer of that many tokens.

    >>> text_of(3)
    ' lorem ipsum dolor'
    """
    rounds, rest = divmod(tokens, len(WORDS))
    return _ONE_ROUND * rounds + "".join(WORDS[:rest])


def _bytes_of(token: int) -> bytes:
    value: int = token % 2 ** (8 * BYTES_PER_TOKEN)
    return value.to_bytes((value.bit_length() + 7) // 8)
