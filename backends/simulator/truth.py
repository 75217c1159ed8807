"""The true length of each answer. It does not depend on anything that a gateway can see."""

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
"""The lognormal distribution for unknown prompts. Like open chat, its median is 120 and its p90 is 560 tokens."""


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """The length of one answer. `input_tokens` is None if the number of prompt tokens is not known."""

    output_tokens: int
    input_tokens: int | None = None


class Truth:
    """Lengths by the SHA-1 of the last user message or prompt. Other lengths are drawn, the same at every run."""

    def __init__(self, answers: Iterable[tuple[str, AnswerLength]] = (), *, seed: int = 0) -> None:
        self._seed = seed
        self._answers: dict[str, deque[AnswerLength]] = {}
        for sha, answer in answers:
            self._answers.setdefault(sha, deque()).append(answer)

    @classmethod
    def load(cls, *, truth: Path | None = None, workload: Path | None = None, seed: int = 0) -> Self:
        """Read the truth file if one is given, else the workload file if one is given.

        Raises:
            WorkloadError: a line of the file is wrong.
            OSError: the file cannot be read.
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
        """Return the answer's length. If a prompt has several rows, they are used in turn.

        `index` distinguishes the choices of one prompt (`n` > 1), so that their drawn lengths differ.
        """
        if (answers := self._answers.get(sha)) is not None:
            answers.rotate(-1)
            return answers[-1]
        draw = random.Random(f"{self._seed}:{sha}:{index}").lognormvariate(math.log(DRAW_MEDIAN_TOKENS), DRAW_SIGMA)
        return AnswerLength(max(1, round(draw)))
