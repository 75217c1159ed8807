"""What the engine says: lorem ipsum, one word a token."""

_LOREM = """
lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna aliqua
enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis aute irure in
reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt
culpa qui officia deserunt mollit anim id est laborum
"""

WORDS = tuple(f" {word}" for word in _LOREM.split())
"""Token `i` of every answer is word `i` modulo their number; a word is ASCII and needs no escape in JSON."""

_ONE_ROUND = "".join(WORDS)


def text_of(tokens: int) -> str:
    """Return an answer of that many tokens.

    >>> text_of(3)
    ' lorem ipsum dolor'
    """
    rounds, rest = divmod(tokens, len(WORDS))
    return _ONE_ROUND * rounds + "".join(WORDS[:rest])
