"""The part of a corpus that fits into memory, for evaluation."""

import random
from collections.abc import Iterator
from itertools import compress, islice

from gateway.prediction.evaluation import PastRequest
from gateway.training.corpus import Corpus, OnBytes
from gateway.training.rows import PastRow

MAX_ROWS = 200_000
MAX_TEXT_CHARS = 256 * 2**20
"""Characters of all texts; with the features of their rows they take about a gigabyte at most."""


def fitting_rows(corpus: Corpus) -> int:
    """Return how many rows fit into memory."""
    share = min(1.0, MAX_TEXT_CHARS / max(1, corpus.text_chars))
    return min(MAX_ROWS, int(corpus.rows * share))


def draw(corpus: Corpus, count: int, seed: int, on_bytes: OnBytes | None = None) -> list[PastRequest]:
    """Return rows drawn at random, in their order."""
    chosen = bytearray(corpus.rows)
    for index in random.Random(seed).sample(range(corpus.rows), min(count, corpus.rows)):
        chosen[index] = 1
    return [_past(row) for row in compress(corpus.read(on_bytes), chosen)]


def first(corpus: Corpus, count: int, on_bytes: OnBytes | None = None) -> list[PastRequest]:
    """Return the first rows in time order."""
    rows: Iterator[PastRow] = corpus.read(on_bytes)
    return [_past(row) for row in islice(rows, count)]


def _past(row: PastRow) -> PastRequest:
    """Return the row without its time: the rows are already in time order, also those without a time."""
    return PastRequest(row.prediction_input(), row.output_tokens, input_tokens=row.input_tokens, group=row.group)
