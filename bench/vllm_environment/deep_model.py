"""Makes a Llama whose step takes as long as that of a large one: narrow and deep, with the tiny model's tokenizer.

Run it inside the vLLM environment with the tiny model's folder and the folder to write. With the tiny model a step is
shorter than the server's work for its tokens, so the server limits the throughput. Here a step is mostly a fixed cost,
as reading the weights is on a GPU: many layers, each too narrow to compute much.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LAYERS = 32
HEADS = 2
HEAD_SIZE = 32
CONTEXT_TOKENS = 8192


def main(tiny: Path, folder: Path) -> None:
    """Write model and tokenizer. 32 layers with 64 keys and values of two bytes take 8 KiB of KV memory per token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HEADS * HEAD_SIZE,
        intermediate_size=2 * HEADS * HEAD_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
