import pytest

from gateway.prediction.wordpiece import MAX_PIECE_CHARS, plain_word_tokens

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
}


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("unaffable", [2, 3, 4]),
        ("UNaffable.", [2, 3, 4, 6]),
        ("don't", [9, 7, 8]),
        ("...", [6, 6, 6]),
        ("unaffabl", [1]),  # not all of it is known
        ("unaffabl.un", [1, 6, 2]),
        ("$", [1]),
        ("", []),
        ("x" * MAX_PIECE_CHARS, [10] + [11] * (MAX_PIECE_CHARS - 1)),
        ("x" * (MAX_PIECE_CHARS + 1), [1]),
    ],
)
def test_the_longest_known_piece_comes_first(word, tokens):
    assert plain_word_tokens(word, VOCABULARY) == tokens


@pytest.mark.parametrize("word", ["naïve", "言葉", "[UNK]", "a[PAD]", "a\x00b", "\x7f"])
def test_what_is_not_plain_is_left_to_the_tokenizer(word):
    assert plain_word_tokens(word, VOCABULARY) is None
