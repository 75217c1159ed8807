"""A logits processor inside vLLM that ends each answer at its recorded length, which the gateway does not know.

A tiny model with random weights does not know when to stop, and a request that states the length of its answer shows it
to the gateway too. So the engine gets a file with conversations and lengths, and requests have neither `max_tokens` nor
`ignore_eos`. For a prompt in the file, the end-of-sequence token has probability zero until the answer's last token.
Then it is the only choice. Other prompts are not changed.

Serve with `--logits-processors true_length:TrueLength --additional-config '{"true_lengths": "FILE"}'`. FILE has one
JSON object per line: `messages` as in the request, and `output_tokens`, which includes the end token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

FORBIDDEN = float("-inf")


class TrueLength(LogitsProcessor):
    """Finds the length of an answer by the tokens of its whole prompt."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        del device, is_pin_memory  # the processor writes whole rows of the logits and keeps nothing on the device
        tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
        self._end = tokenizer.eos_token_id
        self._length_of = dict(known_lengths(Path(vllm_config.additional_config["true_lengths"]), tokenizer))
        # By place in the batch: the number of tokens to generate, and the engine's list of the tokens so far.
        self._answers: dict[int, tuple[int, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """Return False: the processor changes which token is the most likely."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests that vLLM adds to, removes from and moves within its batch."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._answers.pop(place, None)
        for place, _, prompt, output in batch_update.added:
            self._put(place, self._answer_to(prompt, output))
        for source, target, direction in batch_update.moved:
            moved, displaced = self._answers.pop(source, None), self._answers.pop(target, None)
            self._put(target, moved)
            if direction is MoveDirectionality.SWAP:
                self._put(source, displaced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, changed so that each answer ends exactly at its recorded length."""
        last = [place for place, (length, output) in self._answers.items() if len(output) >= length - 1]
        others = [place for place in self._answers if place not in set(last)]
        logits[others, self._end] = FORBIDDEN
        logits[last] = FORBIDDEN
        logits[last, self._end] = 0.0
        return logits

    def _answer_to(self, prompt: list[int] | None, output: list[int]) -> tuple[int, list[int]] | None:
        length = self._length_of.get(tuple(prompt or ()))
        return None if length is None else (length, output)

    def _put(self, place: int, answer: tuple[int, list[int]] | None) -> None:
        if answer is None:
            self._answers.pop(place, None)
        else:
            self._answers[place] = answer


def known_lengths(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the tokens of the prompt and the length of the answer for each line."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        text = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
        yield tuple(tokenizer.encode(text, add_special_tokens=False)), row["output_tokens"]
