import pytest

from gateway.prediction.embedder import MAX_PIECE_CHARS, word_tokens

VOCABULARY = {
    "[UNK]": 1,
    "un": 2,
    "##aff": 3,
    "##able": 4,
    "u": 5,
    ".": 6,
    "'": 7,
    "t": 8,
    "don": 9,
    "x": 10,
    "##x": 11,
    "naive": 12,
    "言": 13,
    "葉": 14,
    "。": 15,
    "[": 16,
    "]": 17,
    "unk": 18,
    "ж": 19,
    "##ж": 20,
}


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("unaffable", [2, 3, 4]),
        ("UNaffable.", [2, 3, 4, 6]),
        ("don't", [9, 7, 8]),
        ("...", [6, 6, 6]),
        ("unaffabl", [1]),  # a part of it is unknown
        ("unaffabl.un", [1, 6, 2]),
        ("$", [1]),
        ("", []),
        ("x" * MAX_PIECE_CHARS, [10] + [11] * (MAX_PIECE_CHARS - 1)),
        ("x" * (MAX_PIECE_CHARS + 1), [1]),
    ],
)
def test_the_longest_known_piece_comes_first(word, tokens):
    assert word_tokens(word, VOCABULARY) == tokens


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("naïve", [12]),  # accents are dropped
        ("NAÏVE", [12]),
        ("言葉。", [13, 14, 15]),  # every CJK character is a word
        ("[UNK]", [16, 18, 17]),  # a text has no special tokens
        ("x\x00\u200dx", [10, 11]),  # control characters are dropped
        ("ЖЖ", [19, 20]),
        ("\ud800", [1]),
    ],
)
def test_unicode_words_are_normalized_like_in_bert(word, tokens):
    assert word_tokens(word, VOCABULARY) == tokens
