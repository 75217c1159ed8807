"""The simulated text: a tokenizer without a vocabulary (each 4 bytes of UTF-8 are one token), and answers."""

from collections.abc import Iterable

BYTES_PER_TOKEN = 4

_LOREM = """
lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua
enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute irure in
reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt
culpa qui officia deserunt mollit anim id est laborum
"""

WORDS = tuple(f" {word}" for word in _LOREM.split())
"""Token `i` of every answer is word `i` modulo the number of words. The words are ASCII and need no JSON escapes."""

_ONE_ROUND = "".join(WORDS)


def tokenize(text: str) -> list[int]:
    """Return the token ids of a text.

    >>> tokenize("hello")
    [1751477356, 111]
    """
    data = text.encode("utf-8", "replace")
    return [int.from_bytes(data[at : at + BYTES_PER_TOKEN]) for at in range(0, len(data), BYTES_PER_TOKEN)]


def detokenize(tokens: Iterable[int]) -> str:
    """Return the text of token ids. Ids that `tokenize` never returns give a text too, which is the same at every call.

    >>> detokenize(tokenize("hello"))
    'hello'
    """
    return b"".join(_bytes_of(token) for token in tokens).decode("utf-8", "replace")


def count_tokens(text: str) -> int:
    """Return the number of tokens of a text; 1 for an empty text, because a chat template is never empty.

    >>> count_tokens("hello")
    2
    """
    return max(1, -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN))


def text_of(tokens: int) -> str:
    """Return an answer with the given number of tokens.

    >>> text_of(3)
    ' lorem ipsum dolor'
    """
    rounds, rest = divmod(tokens, len(WORDS))
    return _ONE_ROUND * rounds + "".join(WORDS[:rest])


def _bytes_of(token: int) -> bytes:
    value: int = token % 2 ** (8 * BYTES_PER_TOKEN)
    return value.to_bytes((value.bit_length() + 7) // 8)
