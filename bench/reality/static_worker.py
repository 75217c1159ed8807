"""A real padded batch loop: runs `model.generate` on batches from standard input, and times each one.

It runs inside the vLLM environment, whose Python has torch and transformers; its argument is the model's folder. Each
line is one batch, a JSON object with `prompts` and `output_tokens`. Each answer line has the tokens of the padded batch
and the seconds. Every answer stops at its own length; the batch runs until the longest one ends.
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

WARM_UP_TOKENS = 16


class TrueLengths(StoppingCriteria):
    """Ends each row at its own length."""

    def __init__(self, output_tokens: Sequence[int], prompt_tokens: int) -> None:
        self._ends = torch.tensor([prompt_tokens + tokens for tokens in output_tokens])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """Return which rows have reached their lengths, (n,) of bool."""
        del scores, kwargs
        return input_ids.shape[1] >= self._ends


class Loop:
    """A model that answers one batch at a time."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder)
        self._model.train(mode=False)
        # A random model may emit the end token at any time; rows must end at their lengths only.
        self._model.generation_config.eos_token_id = None

    def run(self, prompts: Sequence[str], output_tokens: Sequence[int]) -> dict[str, Any]:
        """Answer a batch; return its size, the tokens of padded prompt and longest answer, and the seconds."""
        start_s = time.perf_counter()
        batch = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        prompt_tokens = batch["input_ids"].shape[1]
        with torch.inference_mode():
            answers: Any = self._model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max(output_tokens) + 1,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([TrueLengths(output_tokens, prompt_tokens)]),
            )
        return {
            "size": len(prompts),
            "prompt_tokens": prompt_tokens,
            "generated_tokens": len(answers[0]) - prompt_tokens,
            "seconds": time.perf_counter() - start_s,
        }


def main(folder: Path, lines: Iterable[str]) -> None:
    """Answer all batches, after one that warms up."""
    torch.set_num_threads(1)
    loop = Loop(folder)
    loop.run(["the first batch loads what is loaded on demand"], [WARM_UP_TOKENS])
    for line in lines:
        sys.stdout.write(json.dumps(loop.run(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)
