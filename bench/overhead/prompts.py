"""Generated prompts and past requests: words in Zipf's proportions, a few applications, many users."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from bench.overhead.engine import MODEL

WORDS = 20_000
SYSTEMS, USERS = 8, 500
SYLLABLES = ("an", "be", "co", "de", "er", "fi", "go", "ha", "jo", "ka", "le", "mo", "ne", "qu", "ting", "tion", "ment")
CUES = ("Summarize", "Explain in detail", "List 10", "Translate", "Write a short story about", "Classify")
TOKENS_BY_CUE = (80, 400, 150, 60, 600, 5)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The texts of one request, and its end user."""

    system: str
    text: str
    user: str


def generated_prompts(count: int, seed: int = 0) -> Iterator[tuple[Prompt, int]]:
    """Yield prompts with the tokens of their answers; the first words of a prompt determine the mean length."""
    draw = Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(WORDS)]
    weights = list(accumulate(1.0 / rank for rank in range(1, WORDS + 1)))

    def text(length: int) -> str:
        return " ".join(draw.choices(words, cum_weights=weights, k=length))

    systems = [f"You are assistant {i}. {text(40)}" for i in range(SYSTEMS)]
    for _ in range(count):
        cue = draw.randrange(len(CUES))
        tokens = max(1, round(TOKENS_BY_CUE[cue] * draw.lognormvariate(0.0, 0.4)))
        question = f"{CUES[cue]}: {text(max(3, round(draw.lognormvariate(4.0, 0.6))))}?"
        yield Prompt(draw.choice(systems), question, f"user-{draw.randrange(USERS)}"), tokens


def past_row(prompt: Prompt, tokens: int, app: str) -> dict[str, object]:
    """Return a past request in the format of `magnus history import`."""
    return {
        "app": app,
        "user": prompt.user,
        "model": MODEL,
        "system": prompt.system,
        "prompt": prompt.text,
        "output_tokens": tokens,
    }
