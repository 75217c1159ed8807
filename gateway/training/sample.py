"""As much of a corpus as evaluation can hold in memory."""

import random
from collections.abc import Iterator
from itertools import compress, islice

from gateway.prediction.evaluation import PastRequest
from gateway.prediction.prediction_input import PredictionInput
from gateway.training.corpus import Corpus, OnBytes
from gateway.training.rows import PastRow

MAX_ROWS = 200_000
MAX_TEXT_CHARS = 256 * 2**20
"""Texts and their rows' features take about a gigabyte together at most."""


def fitting_rows(corpus: Corpus) -> int:
    """Say how many of the rows are held at once, so that memory stays bounded whatever the files are."""
    share = min(1.0, MAX_TEXT_CHARS / max(1, corpus.text_chars))
    return min(MAX_ROWS, int(corpus.rows * share))


def draw(corpus: Corpus, count: int, seed: int, on_bytes: OnBytes | None = None) -> list[PastRequest]:
    """Draw rows at random, in their order."""
    chosen = bytearray(corpus.rows)
    for index in random.Random(seed).sample(range(corpus.rows), min(count, corpus.rows)):
        chosen[index] = 1
    return [_past(row) for row in compress(corpus.read(on_bytes), chosen)]


def first(corpus: Corpus, count: int, on_bytes: OnBytes | None = None) -> list[PastRequest]:
    """Take the first rows in the order of their times."""
    rows: Iterator[PastRow] = corpus.read(on_bytes)
    return [_past(row) for row in islice(rows, count)]


def _past(row: PastRow) -> PastRequest:
    """Leave the time out: the rows are in its order already, and those without one have their place there."""
    return PastRequest(PredictionInput.of_row(row), row.output_tokens, input_tokens=row.input_tokens, group=row.group)
