"""The engine's KV memory, under the two admission rules in use: paged (vLLM) and reserved up front (TGI)."""

from typing import Protocol

from backends.simulator.engine.sequence import SequenceState

WATERMARK = 0.01
"""Share of the blocks that are left free when a sequence is admitted beside others."""


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

    def reusable(self, state: SequenceState) -> int:
        """Return how many of a waiting sequence's tokens have their KV in memory still."""
        ...

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take memory for a sequence's first chunk beyond what is `computed`; False takes nothing."""
        ...

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take memory for `chunk` more tokens of a running sequence; False takes nothing."""
        ...

    def free(self, state: SequenceState) -> None:
        """Give a sequence's memory back."""
        ...

    def preempt(self, state: SequenceState) -> None:
        """Take a sequence's memory away from it."""
        ...


class PagedKV:
    """Blocks of `block_size` tokens, taken as sequences grow; block 0 is reserved, as in vLLM.

    Args:
        num_gpu_blocks: all blocks.
        block_size: tokens in each.
        watermark: share of the blocks that is left free when a sequence is admitted beside others.
        whole_input: whether a sequence is admitted only if all of its tokens so far fit, not the first chunk alone.
    """

    def __init__(
        self, num_gpu_blocks: int, block_size: int = 16, *, watermark: float = WATERMARK, whole_input: bool = False
    ) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.block_size = block_size
        self.whole_input = whole_input
        self.free_blocks = num_gpu_blocks - 1
        self._watermark_blocks = int(watermark * num_gpu_blocks)

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

    def reusable(self, state: SequenceState) -> int:
        """Return none: what is freed is forgotten."""
        del state
        return 0

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take blocks for the first chunk if the watermark stays free; a sequence alone may take all."""
        if not self.would_admit(state, chunk, beside_others=beside_others):
            return False
        return self._take(state, chunk)

    def would_admit(self, state: SequenceState, chunk: int, *, beside_others: bool, due: int = 0) -> bool:
        """Tell whether a sequence would be admitted, after `due` blocks have been taken by others."""
        spare = due + (self._watermark_blocks if beside_others else 0)
        missing = self._missing(state, state.tokens - state.computed if self.whole_input else chunk)
        return missing + spare <= self.free_blocks

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take the blocks that `chunk` more tokens need, down to the last one."""
        return self._take(state, chunk)

    def free(self, state: SequenceState) -> None:
        """Give the blocks back."""
        self.free_blocks += state.held // self.block_size
        state.held = 0

    def preempt(self, state: SequenceState) -> None:
        """Give the blocks back."""
        self.free(state)

    def take_blocks(self, blocks: int) -> None:
        """Take free blocks; there must be as many."""
        self.free_blocks -= blocks

    def _missing(self, state: SequenceState, chunk: int) -> int:
        return max(0, -(-(state.computed + chunk - state.held) // self.block_size))

    def _take(self, state: SequenceState, chunk: int) -> bool:
        blocks = self._missing(state, chunk)
        if blocks > self.free_blocks:
            return False
        self.take_blocks(blocks)
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

    def reusable(self, state: SequenceState) -> int:
        """Return none: nobody comes back."""
        del state
        return 0

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

    def preempt(self, state: SequenceState) -> None:
        """Give the reservation back; nothing here ever asks for it."""
        self.free(state)


def _reservation(state: SequenceState) -> int:
    return state.sequence.prompt_tokens + state.sequence.max_new_tokens
