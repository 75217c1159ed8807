"""Paged memory that admits sequences and reuses blocks as vLLM does.

A freed block keeps its content until it is taken again. Blocks that were freed first are taken first, and the last
blocks of a sequence before its first. So a sequence that returns soon after its preemption computes only the blocks
that others have overwritten. Sequences do not share blocks here: each computes a common prefix itself.

Source: vLLM 0.32, `BlockPool.free_blocks`, `KVCacheManager.allocate_slots` with `full_sequence_must_fit`.
"""

from collections import deque

from backends.simulator.engine.kv_cache import PagedKV
from backends.simulator.engine.sequence import SequenceId, SequenceState


class _Freed:
    """Consecutive free blocks of one former owner. `owner` is None if the sequence will not return."""

    __slots__ = ("blocks", "owner")

    def __init__(self, owner: SequenceId | None, blocks: int) -> None:
        self.owner = owner
        self.blocks = blocks


class PrefixCachingKV(PagedKV):
    """`PagedKV` without a watermark. It admits a sequence if its whole input fits.

    Args:
        num_gpu_blocks: number of blocks, including block 0.
        block_size: tokens per block.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int = 16) -> None:
        super().__init__(num_gpu_blocks, block_size, watermark=0.0, whole_input=True)
        self._freed = deque([_Freed(None, self.free_blocks)])  # the blocks that are taken next come first
        self._left_by: dict[SequenceId, _Freed] = {}

    def reusable(self, state: SequenceState) -> int:
        """Return the tokens whose KV is still in memory. The last token is always computed again."""
        left = self._left_by.get(state.id)
        return 0 if left is None else min(left.blocks, (state.tokens - 1) // self.block_size) * self.block_size

    def admit(self, state: SequenceState, chunk: int, *, beside_others: bool) -> bool:
        """Take the sequence's remaining blocks, and more blocks for the first chunk."""
        if not self.would_admit(state, chunk, beside_others=beside_others):
            return False
        if (left := self._left_by.pop(state.id, None)) is not None:
            reused = state.computed // self.block_size
            self.free_blocks -= reused
            state.held = reused * self.block_size
            left.owner, left.blocks = None, left.blocks - reused
        return self._take(state, chunk)

    def take_blocks(self, blocks: int) -> None:
        """Take free blocks. Their content is lost."""
        super().take_blocks(blocks)
        while blocks:
            head = self._freed[0]
            taken = min(blocks, head.blocks)
            head.blocks -= taken
            blocks -= taken
            if not head.blocks:
                self._freed.popleft()
                if head.owner is not None:
                    self._left_by.pop(head.owner, None)

    def free(self, state: SequenceState) -> None:
        """Free the blocks of a sequence that has ended."""
        self._free(state, None)

    def preempt(self, state: SequenceState) -> None:
        """Free the blocks of a preempted sequence. It may reuse the blocks that are not overwritten."""
        self._free(state, state.id)

    def _free(self, state: SequenceState, owner: SequenceId | None) -> None:
        held, full = state.held // self.block_size, state.computed // self.block_size
        super().free(state)
        if held > full:  # a block that is not full cannot be reused, so it is taken first
            self._freed.appendleft(_Freed(None, held - full))
        if full:
            left = _Freed(owner, full)
            self._freed.append(left)
            if owner is not None:
                self._left_by[owner] = left
