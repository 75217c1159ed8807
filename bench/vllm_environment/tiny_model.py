"""Make a Llama that fits into a test: random weights, a real tokenizer, 1 KiB of KV per token.

Run inside the vLLM environment with the folder to write. The tokenizer learns from the standard library's sources,
which every machine has, so nothing is fetched and nothing is shipped. Weights are seeded: every build answers alike.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, END, PAD, TURN, TURN_END = "<s>", "</s>", "<pad>", "<|turn|>", "<|turn_end|>"
SPECIAL_TOKENS = [BEGIN, END, PAD, TURN, TURN_END]
VOCABULARY = 4096
CONTEXT_TOKENS = 8192
CHAT_TEMPLATE = (
    BEGIN
    + "{%- for message in messages -%}"
    + TURN
    + "{{ message['role'] }}\n{{ message['content'] }}"
    + TURN_END
    + "{%- endfor -%}"
    + "{%- if add_generation_prompt -%}"
    + TURN
    + "assistant\n{%- endif -%}"
)


def train_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on text that is at hand."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-m]*.py"))
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(source) for source in sources], VOCABULARY, special_tokens=SPECIAL_TOKENS, show_progress=False)
    trained = folder / "tokenizer.json"
    bpe.save(str(trained))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(trained),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build 2 layers of 128 values of key and value in two bytes each: 2 · 2 · 128 · 2 B = 1 KiB per token."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main(folder: Path) -> None:
    """Write the model and its tokenizer into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    build_model(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
