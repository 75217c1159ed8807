"""Where an answer's length comes from: never from anything that a gateway in front could see."""

import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from backends.simulator.workload import read_truth, read_workload, sha_of

DRAW_MEDIAN_TOKENS = 120
DRAW_SIGMA = 1.2
"""The lognormal for unknown prompts: about the spread of open chat, median 120 and 90th percentile 560 tokens."""


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """What is known of a request: `input_tokens` is None where only the request itself can tell."""

    output_tokens: int
    input_tokens: int | None = None


class Truth:
    """Answers by the SHA-1 of the last user message or prompt; for others one is drawn, the same at every run."""

    def __init__(self, answers: Iterable[tuple[str, AnswerLength]] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._answers: dict[str, deque[AnswerLength]] = {}
        for sha, answer in answers:
            self._answers.setdefault(sha, deque()).append(answer)

    @classmethod
    def load(cls, *, truth: Path | None = None, workload: Path | None = None, seed: int = 0) -> Self:
        """Read the truth file if there is one, else the workload file if there is one.

        Raises:
            WorkloadError: a line of it is wrong.
            OSError: it cannot be read.
        """
        if truth is not None:
            rows = ((row.sha, AnswerLength(row.output_tokens, row.input_tokens)) for row in read_truth(truth))
            return cls(rows, seed=seed)
        if workload is not None:
            known = ((row.text, row.output_tokens, row.input_tokens) for row in read_workload(workload))
            return cls(
                (
                    (sha_of(text), AnswerLength(output, count))
                    for text, output, count in known
                    if text is not None and output
                ),
                seed=seed,
            )
        return cls(seed=seed)

    def answer(self, sha: str, index: int = 0) -> AnswerLength:
        """Return the answer to a prompt; several rows of one prompt serve in turn.

        `index` tells apart the drawn answers to one prompt, as with `n` > 1.
        """
        if (answers := self._answers.get(sha)) is not None:
            answers.rotate(-1)
            return answers[-1]
        draw = random.Random(f"{self._seed}:{sha}:{index}").lognormvariate(math.log(DRAW_MEDIAN_TOKENS), DRAW_SIGMA)
        return AnswerLength(max(1, round(draw)))
