"""A real padded batch loop: `model.generate` on batches that come on standard input, timed one by one.

Run inside the vLLM environment, whose Python has torch and transformers, with the model's folder. A batch is one JSON
object a line, `prompts` and `output_tokens`; for each comes one line with the padded prompt's tokens and the seconds.
Every answer stops at its own length, and the batch goes on until the longest one's, padding the others.
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
        """Return which rows are at their ends, (n,) of bool."""
        del scores, kwargs
        return input_ids.shape[1] >= self._ends


class Loop:
    """A model that answers one batch at a time."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(folder)
        self._model.train(mode=False)
        # A random model may name the end at any time: rows end at their lengths and not before.
        self._model.generation_config.eos_token_id = None

    def run(self, prompts: Sequence[str], output_tokens: Sequence[int]) -> dict[str, Any]:
        """Answer a batch; return its size, padded prompt and longest answer in tokens, and the seconds it took."""
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
    """Answer all batches, after one that does not count."""
    torch.set_num_threads(1)
    loop = Loop(folder)
    loop.run(["a first batch loads what is loaded on demand"], [WARM_UP_TOKENS])
    for line in lines:
        sys.stdout.write(json.dumps(loop.run(**json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin)
