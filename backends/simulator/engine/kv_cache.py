"""The engine's KV memory, with two admission rules: paged (vLLM) and reserved in advance (TGI)."""

from typing import Protocol

from backends.simulator.engine.sequence import SequenceState

WATERMARK = 0.01
"""Share of the blocks that must stay free when a sequence is admitted while others run."""


class KVCache(Protocol):
    """Memory for keys and values."""

    @property
    def used_tokens(self) -> int:
        """Memory in use, in tokens."""
        ...

    @property
    def capacity_tokens(self) -> int:
        """Size of the memory, in tokens."""
        ...

    def fits_alone(self, state: SequenceState) -> bool:
        """Return whether the sequence can run to its end if it has the whole memory."""
        ...

    def reusable(self, state: SequenceState) -> int:
        """Return how many tokens of a waiting sequence still have their KV in memory."""
        ...

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take memory for a sequence's first chunk after its `computed` tokens. Return False if there is not enough."""
        ...

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take memory for `chunk` more tokens of a running sequence. Return False if there is not enough."""
        ...

    def free(self, state: SequenceState) -> None:
        """Free the memory of a sequence."""
        ...

    def preempt(self, state: SequenceState) -> None:
        """Free the memory of a sequence that is preempted."""
        ...


class PagedKV:
    """Blocks of `block_size` tokens, taken as sequences grow. Block 0 is reserved, as in vLLM.

    Args:
        num_gpu_blocks: number of blocks, including block 0.
        block_size: tokens per block.
        watermark: share of the blocks that must stay free when a sequence is admitted while others run.
        whole_input: whether all tokens of a sequence must fit for its admission, not only its first chunk.
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
        """Size of the blocks that are taken, in tokens."""
        return (self.num_gpu_blocks - 1 - self.free_blocks) * self.block_size

    @property
    def capacity_tokens(self) -> int:
        """Size of all usable blocks, in tokens."""
        return (self.num_gpu_blocks - 1) * self.block_size

    def fits_alone(self, state: SequenceState) -> bool:
        """Return whether the whole sequence fits the usable blocks."""
        return state.final_tokens <= self.capacity_tokens

    def reusable(self, state: SequenceState) -> int:
        """Return 0: freed blocks are not reused."""
        del state
        return 0

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take blocks for the first chunk if the watermark stays free. A sequence alone may take all blocks."""
        if not self.would_admit(state, chunk, beside_others=beside_others):
            return False
        return self._take(state, chunk)

    def would_admit(self, state: SequenceState, chunk: int, *, beside_others: bool, due: int = 0) -> bool:
        """Return whether a sequence would be admitted after others have taken `due` blocks."""
        spare = due + (self._watermark_blocks if beside_others else 0)
        missing = self._missing(state, state.tokens - state.computed if self.whole_input else chunk)
        return missing + spare <= self.free_blocks

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Take the blocks for `chunk` more tokens. The last free block may be used."""
        return self._take(state, chunk)

    def free(self, state: SequenceState) -> None:
        """Free the blocks."""
        self.free_blocks += state.held // self.block_size
        state.held = 0

    def preempt(self, state: SequenceState) -> None:
        """Free the blocks."""
        self.free(state)

    def take_blocks(self, blocks: int) -> None:
        """Take free blocks. The caller makes sure that there are enough."""
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
    """Memory for the prompt and `max_new_tokens` is reserved before the first token, so no sequence is preempted."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0

    def fits_alone(self, state: SequenceState) -> bool:
        """Return whether the reservation fits the whole memory."""
        return _reservation(state) <= self.capacity_tokens

    def reusable(self, state: SequenceState) -> int:
        """Return 0: no sequence is preempted, so none returns."""
        del state
        return 0

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Reserve memory for the whole sequence, whatever the chunk."""
        if self.used_tokens + _reservation(state) > self.capacity_tokens:
            return False
        state.held = _reservation(state)
        self.used_tokens += state.held
        return True

    def grow(self, state: SequenceState, chunk: int) -> bool:
        """Return True: the reservation includes the growth."""
        return True

    def free(self, state: SequenceState) -> None:
        """Free the reservation."""
        self.used_tokens -= state.held
        state.held = 0

    def preempt(self, state: SequenceState) -> None:
        """Free the reservation. The engine never calls this."""
        self.free(state)


def _reservation(state: SequenceState) -> int:
    return state.sequence.prompt_tokens + state.sequence.max_new_tokens
