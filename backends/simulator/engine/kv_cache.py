"""The engine's KV memory, under the two admission rules in use: paged (vLLM) and reserved up front (TGI)."""

from typing import Protocol

from backends.simulator.engine.sequence import SequenceState

WATERMARK = 0.01
"""Share of the blocks that vLLM leaves free when it admits a sequence beside others."""


class KVCache(Protocol):
    """Memory for keys and values."""

    @property
    def used_tokens(self) -> int:
        """Tokens' worth of memory taken."""
        ...

    @property
    def capacity_tokens(self) -> int:
        """Tokens' worth of memory in all."""
        ...

    def fits_alone(self, state: SequenceState) -> bool:
        """Tell whether the sequence could run to its end with the memory to itself."""
        ...

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take memory for a sequence's first chunk; False takes nothing."""
        ...

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take memory for `chunk` more tokens of a running sequence; False takes nothing."""
        ...

    def free(self, state: SequenceState) -> None:
        """Give a sequence's memory back."""
        ...


class PagedKV:
    """Blocks of `block_size` tokens, taken as sequences grow; block 0 is reserved, as in vLLM."""

    def __init__(self, num_gpu_blocks: int, block_size: int = 16) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.block_size = block_size
        self.free_blocks = num_gpu_blocks - 1
        self.watermark_blocks = int(WATERMARK * num_gpu_blocks)

    @property
    def used_tokens(self) -> int:
        """Tokens in the blocks that are taken, whether filled or not."""
        return (self.num_gpu_blocks - 1 - self.free_blocks) * self.block_size

    @property
    def capacity_tokens(self) -> int:
        """Tokens in all usable blocks."""
        return (self.num_gpu_blocks - 1) * self.block_size

    def fits_alone(self, state: SequenceState) -> bool:
        """Compare the whole sequence with the usable blocks."""
        return state.final_tokens <= self.capacity_tokens

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take blocks for the first chunk if the watermark stays free; a sequence alone may take all."""
        watermark = self.watermark_blocks if beside_others else 0
        return self._take(state, chunk, spare=watermark)

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take the blocks that `chunk` more tokens need, down to the last one."""
        return self._take(state, chunk, spare=0)

    def free(self, state: SequenceState) -> None:
        """Give the blocks back."""
        self.free_blocks += state.held // self.block_size
        state.held = 0

    def _take(self, state: SequenceState, chunk: int, spare: int) -> bool:
        missing = state.computed + chunk - state.held
        blocks = max(0, -(-missing // self.block_size))
        if blocks + spare > self.free_blocks:
            return False
        self.free_blocks -= blocks
        state.held += blocks * self.block_size
        return True


class ReservedKV:
    """Prompt and `max_new_tokens` are reserved before the first token, so that nothing is ever preempted."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0

    def fits_alone(self, state: SequenceState) -> bool:
        """Compare the reservation with the whole memory."""
        return _reservation(state) <= self.capacity_tokens

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Reserve for the whole sequence, whatever the chunk."""
        if self.used_tokens + _reservation(state) > self.capacity_tokens:
            return False
        state.held = _reservation(state)
        self.used_tokens += state.held
        return True

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Grant it: the reservation covers it."""
        return True

    def free(self, state: SequenceState) -> None:
        """Give the reservation back."""
        self.used_tokens -= state.held
        state.held = 0


def _reservation(state: SequenceState) -> int:
    return state.sequence.prompt_tokens + state.sequence.max_new_tokens
