"""The tokens of a plain word, as BERT's tokenizer has them: split at punctuation, then the longest known piece first.

The tokenizers library knows every script, but its call costs as much as all else of an embedding, and nearly every text
has some word that was never seen before. Most of those are plain ASCII, and then there is nothing to normalize.

Source: Wu et al., Google's Neural Machine Translation System (arXiv 1609.08144), sec. 4.1; Devlin et al., BERT.
"""

import re
from collections.abc import Mapping

MAX_PIECE_CHARS = 100
"""A longer run of letters and digits is unknown as a whole."""

UNKNOWN = "[UNK]"
_PIECES = re.compile(r"[a-z0-9]+|[^a-z0-9]")


def plain_word_tokens(word: str, vocabulary: Mapping[str, int]) -> list[int] | None:
    """Return the tokens of a word; None where it is not plain: not ASCII, or with what may be a special token.

    Args:
        word: without white space.
        vocabulary: ids of pieces, those within a word with "##" before them; lower case.

    >>> plain_word_tokens("Running!", {"run": 5, "##ning": 6, "!": 7, "[UNK]": 1})
    [5, 6, 7]
    """
    if "[" in word or not (word.isascii() and word.isprintable()):
        return None
    return [token for piece in _PIECES.findall(word.lower()) for token in _longest_first(piece, vocabulary)]


def _longest_first(piece: str, vocabulary: Mapping[str, int]) -> list[int]:
    if len(piece) > MAX_PIECE_CHARS:
        return [vocabulary[UNKNOWN]]
    tokens: list[int] = []
    start = 0
    while start < len(piece):
        for end in range(len(piece), start, -1):
            known = vocabulary.get(f"##{piece[start:end]}" if start else piece[:end])
            if known is not None:
                tokens.append(known)
                start = end
                break
        else:
            return [vocabulary[UNKNOWN]]
    return tokens
