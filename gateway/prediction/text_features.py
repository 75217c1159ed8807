"""Features of a prompt's text: sizes, classes of bytes, and words that ask for a long or a short answer.

Bytes are counted by class in one pass over their histogram; words are looked up in sets. Both take microseconds. Only
the cue words, which are English, depend on the language.

Source: Clairvoyant (arXiv 2606.07248) for lexical cues as length features.
"""

from math import log1p, nan

import numpy as np
from numpy.typing import NDArray

SCAN_BYTES = 4096
"""Bytes read for the histogram; of a longer text the start and the end are read."""

CUE_CHARS = 1024
"""Characters read for cue words, at each end of the text."""

BYTES_PER_FOREIGN_PIECE = 3.0
"""Bytes beyond ASCII that count as one more piece: scripts without spaces have about one token per character."""

_BYTE_CLASSES: dict[str, bytes] = {
    "lower": bytes(range(ord("a"), ord("z") + 1)),
    "upper": bytes(range(ord("A"), ord("Z") + 1)),
    "digit": b"0123456789",
    "space": b" \t",
    "newline": b"\n",
    "sentence_end": b".?!",
    "question": b"?",
    "comma": b",",
    "bracket": b"()[]",
    "brace": b"{}",
    "operator": b"=+-*/<>&|^%~",
    "semicolon": b";",
    "colon": b":",
    "quote": b"\"'`",
    "mark": b"#$@\\_",
    "latin": bytes(range(0xC3, 0xCA)),
    "cyrillic": bytes((0xD0, 0xD1, 0xD2, 0xD3)),
    "hebrew_arabic": bytes(range(0xD6, 0xDC)),
    "indic": bytes((0xE0,)),
    "kana": bytes((0xE3,)),
    "han": bytes(range(0xE4, 0xEA)),
    "hangul": bytes(range(0xEA, 0xEE)),
    "emoji": bytes((0xF0,)),
}
"""Byte classes; scripts beyond ASCII are known by the first bytes of their UTF-8."""

_CUES: dict[str, str] = {
    "brief": "brief briefly short shortly concise concisely only just single simply simple quick tldr succinct",
    "long": "detail detailed details comprehensive thorough thoroughly essay story article blog long elaborate "
    "extensive depth report letter speech chapter novel poem script lyrics",
    "list": "list lists examples ideas table steps bullet outline top several ways tips reasons questions",
    "explain": "explain describe discuss compare analyze why how difference evaluate understand",
    "write": "write create generate compose design develop make build produce draft give provide",
    "transform": "rewrite translate convert classify summarize summarise correct fix edit paraphrase extract identify "
    "replace categorize detect sort find determine choose",
    "code": "code function program python java javascript html sql script class def return implement algorithm api "
    "const import int void public",
    "fact": "what who when where which is are does did was many much name calculate compute",
    "role": "you your act pretend role character imagine play",
    "tool": "api tool tools call search calculator input output context response json",
}
_CUES_OF: dict[str, list[int]] = {}
for _index, _words in enumerate(_CUES.values()):
    for _word in _words.split():
        _CUES_OF.setdefault(_word, []).append(_index)
_CUE_WORDS = frozenset(_CUES_OF)

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: float(number) for number, word in enumerate(_NUMBER_WORDS.split())} | {
    "a": 1.0,
    "an": 1.0,
    "single": 1.0,
    "few": 3.0,
    "couple": 2.0,
    "fifty": 50.0,
    "hundred": 100.0,
}

_TOKENS_PER_UNIT = {
    "word": 1.4,
    "token": 1.0,
    "character": 0.25,
    "sentence": 25.0,
    "line": 12.0,
    "paragraph": 110.0,
    "page": 600.0,
    "stanza": 45.0,
    "verse": 45.0,
}
_UNITS = _TOKENS_PER_UNIT | {f"{unit}s": tokens for unit, tokens in _TOKENS_PER_UNIT.items()}
_UNIT_SET = frozenset(_UNITS)

TEXT_FEATURES: tuple[str, ...] = (
    "pieces",
    "words",
    "lines",
    *(f"share_{name}" for name in _BYTE_CLASSES),
    *(f"cue_{name}" for name in _CUES),
    "cue_fence",
    "cue_question",
    "requested_tokens",
    "requested_count",
)
"""Names of the features: sizes are log1p of counts, shares are of the bytes read, cues count distinct words."""

PIECES = TEXT_FEATURES.index("pieces")
"""Index of the log count of runs of letters, digits, spaces and signs: a token count without a tokenizer."""

_CLASS_MATRIX = np.zeros((256, len(_BYTE_CLASSES)))
for _column, _bytes in enumerate(_BYTE_CLASSES.values()):
    _CLASS_MATRIX[list(_bytes), _column] = 1.0
_KIND = np.full(256, 3, np.uint8)
_KIND[list(_BYTE_CLASSES["lower"] + _BYTE_CLASSES["upper"])] = 0
_KIND[list(_BYTE_CLASSES["digit"])] = 1
_KIND[list(b" \t\r\n")] = 2
_KIND[0x80:] = 4
_SPACES = {code: " " for code in range(128) if not chr(code).isalnum()}


def text_features(text: str) -> list[float]:
    """Return the values of `TEXT_FEATURES`; all are NaN for an empty text."""
    if not text:
        return [nan] * len(TEXT_FEATURES)
    raw = text.encode(errors="surrogatepass")
    words = (text if len(text) <= 2 * CUE_CHARS else f"{text[:CUE_CHARS]} {text[-CUE_CHARS:]}").lower()
    return [*_byte_features(raw), *_cue_features(words)]


def _byte_features(raw: bytes) -> list[float]:
    scale = max(1.0, len(raw) / SCAN_BYTES)
    if scale > 1.0:
        raw = raw[: SCAN_BYTES // 2] + raw[-SCAN_BYTES // 2 :]
    codes: NDArray[np.uint8] = np.frombuffer(raw, np.uint8)
    shares = np.bincount(codes, minlength=256) @ _CLASS_MATRIX / len(raw)
    kinds = _KIND[codes]
    pieces = 1 + np.count_nonzero(kinds[1:] != kinds[:-1]) + np.count_nonzero(codes & 0x80) / BYTES_PER_FOREIGN_PIECE
    return [
        log1p(pieces * scale),
        log1p(raw.count(b" ") * scale),
        log1p(raw.count(b"\n") * scale),
        *shares.tolist(),
    ]


def _cue_features(text: str) -> list[float]:
    words = text.translate(_SPACES).split()
    distinct = frozenset(words)
    counts = [0.0] * len(_CUES)
    for word in distinct & _CUE_WORDS:
        for index in _CUES_OF[word]:
            counts[index] += 1.0
    return [
        *counts,
        float(text.count("```")),
        float(text.endswith("?")),
        _requested_tokens(words) if distinct & _UNIT_SET else nan,
        _requested_count(words),
    ]


def _requested_tokens(words: list[str]) -> float:
    """Return the log of the tokens that the text asks for ("in 200 words", "two short paragraphs"); NaN for none.

    >>> round(_requested_tokens("write it in 200 words".split()), 2) == round(log1p(280), 2)
    True
    """
    for i, word in enumerate(words):
        if word in _UNITS:
            for number in reversed(words[max(0, i - 2) : i]):
                if (count := _number(number)) is not None:
                    return log1p(count * _UNITS[word])
    return nan


def _requested_count(words: list[str]) -> float:
    """Return log1p of the first small number ("list 10 ideas"); NaN for none."""
    for word in words[:64]:
        if word.isdecimal() and len(word) <= 2:
            return log1p(int(word))
    return nan


def _number(word: str) -> float | None:
    if word.isdecimal() and len(word) <= 6:
        return float(int(word))
    return _NUMBERS.get(word)
