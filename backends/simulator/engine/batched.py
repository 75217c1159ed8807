"""A faster continuous engine for long simulations: it updates all decoding sequences together.

Between two events (an admission, an end, or a missing block) every decoding sequence gets one token per step. So the
position of a sequence is the engine's step counter plus a fixed offset. Tables indexed by the counter say which
sequences end, need a block or report progress at a step. The cost of a step depends on its events, not on the size of
the batch.

All other cases (a missing block, chunked prefill, an abort) are left to the parent class, after the states have been
brought up to date. `tests/property/test_batched_engine.py` compares the two engines step by step.
"""

from backends.simulator.engine.advance import Advance, advance_of
from backends.simulator.engine.continuous import ContinuousEngine
from backends.simulator.engine.kv_cache import PagedKV
from backends.simulator.engine.sequence import SequenceId, SequenceState, StepResult
from backends.simulator.engine.step_time import StepTime
from backends.simulator.engine.waiting import WaitingQueue


class _Decoding:
    """A sequence whose prompt is computed. The KV of its first `offset + clock` tokens is in memory."""

    __slots__ = ("offset", "place", "state")

    def __init__(self, state: SequenceState, offset: int, place: int) -> None:
        self.state = state
        self.offset = offset
        self.place = place


class BatchedStepEngine(ContinuousEngine):
    """A `ContinuousEngine` with paged memory whose steps are cheap.

    Args:
        step_time: the model of a step's duration.
        kv_cache: the KV memory.
        waiting: the engine's own queue.
        max_num_seqs: largest number of sequences in the batch.
        max_num_batched_tokens: largest number of tokens computed in a step.
        progress_tokens: an answer reports progress every `progress_tokens` tokens.
    """

    def __init__(
        self,
        step_time: StepTime,
        kv_cache: PagedKV,
        waiting: WaitingQueue,
        *,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
        progress_tokens: int = 16,
    ) -> None:
        super().__init__(
            step_time, kv_cache, waiting, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
        )
        self._paged = kv_cache
        self._block_size = kv_cache.block_size
        self._progress_tokens = progress_tokens
        self._clock = 0
        self._next_place = 0
        self._kv_read = 0
        self._decoding: dict[SequenceId, _Decoding] = {}  # in the order of admission
        self._ends: dict[int, list[_Decoding]] = {}  # by the clock after the last step
        self._blocks_due = [0] * self._block_size  # by the clock before the step, modulo block size
        self._reporting: list[dict[SequenceId, _Decoding]] = [
            {} for _ in range(progress_tokens)
        ]  # by the clock after the step

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        return len(self._decoding) + len(self._running)

    def holds(self, sequence_id: SequenceId) -> bool:
        """Return whether the sequence is in the engine, running or waiting."""
        return sequence_id in self._states

    def generated(self, sequence_id: SequenceId) -> int:
        """Return the number of tokens that an answer has so far."""
        if (decoding := self._decoding.get(sequence_id)) is not None:
            return decoding.offset + self._clock + 1 - decoding.state.prompt_tokens
        state = self._states[sequence_id]
        return state.tokens - state.prompt_tokens

    def abort(self, sequence_id: SequenceId) -> bool:
        """Remove a sequence and free its memory. Return whether it was still in the engine."""
        self._flush_states()
        return super().abort(sequence_id)

    def step(self) -> StepResult:
        """Run one step. The result lists every sequence that got a token."""
        self._flush_states()
        return super().step()

    def advance(self) -> Advance:
        """Run one step. The result lists only the sequences that report progress."""
        size, due = len(self._decoding), self._blocks_due[self._clock % self._block_size]
        if self._running or due > self._paged.free_blocks or size > self._max_num_batched_tokens:
            return self._to_advance(self.step())
        if due:
            self._paged.take_blocks(due)
        budget = self._max_num_batched_tokens - size
        joining: list[SequenceState] = []
        while budget and len(self._waiting) and size + len(joining) < self._max_num_seqs:
            state = self._waiting.peek()
            reused = self._paged.reusable(state)
            if state.tokens - reused > budget:  # only a chunk of the prompt fits, or nothing
                return self._finish_step_in_chunks(joining, budget)
            state.computed, state.chunk = reused, state.tokens - reused
            if not self._paged.admit(state, state.chunk, beside_others=bool(size or joining)):
                state.computed = state.chunk = 0
                break
            budget -= state.chunk
            joining.append(self._waiting.pop())
        return self._decode(joining)

    def upcoming(self, most: int) -> list[float]:
        """Return the durations of the next steps, as long as they only decode.

        A sequence may end in the last of these steps. The list is empty if the very next step does more than decode.

        Args:
            most: largest number of steps.
        """
        size, clock, kv_read, free = len(self._decoding), self._clock, self._kv_read, self._paged.free_blocks
        if self._running or not 0 < size <= self._max_num_batched_tokens or self._will_admit():
            return []
        durations: list[float] = []
        while len(durations) < most:
            free -= self._blocks_due[clock % self._block_size]
            if free < 0:
                break
            clock, kv_read = clock + 1, kv_read + size
            durations.append(self._step_time(size, kv_read, 0))
            if clock in self._ends:
                break
        return durations

    def decode(self, steps: int) -> Advance:
        """Run several steps together. `steps` must not exceed the number that `upcoming` has just returned."""
        size, since = len(self._decoding), self._clock
        duration_s = kv_token_s = 0.0
        for _ in range(steps):
            if due := self._blocks_due[self._clock % self._block_size]:
                self._paged.take_blocks(due)
            self._clock += 1
            self._kv_read += size
            step_s = self._step_time(size, self._kv_read, 0)
            duration_s += step_s
            kv_token_s += self._paged.used_tokens * step_s
        finished = self._end_due(self._clock)
        clocks = range(max(since, self._clock - self._progress_tokens) + 1, self._clock + 1)
        grown = [one for clock in clocks for one in self._grown_at(clock)]
        return Advance(duration_s, size * steps, kv_token_s, grown, finished=finished)

    def _will_admit(self) -> bool:
        """Return whether the next step admits the head of the queue. This does not change until a sequence ends."""
        size = len(self._decoding)
        budget = self._max_num_batched_tokens - size
        if not len(self._waiting) or size >= self._max_num_seqs or not budget:
            return False
        head, due = self._waiting.peek(), self._blocks_due[self._clock % self._block_size]
        chunk = min(head.tokens - self._paged.reusable(head), budget)
        return self._paged.would_admit(head, chunk, beside_others=True, due=due)

    def _grown_at(self, clock: int) -> list[tuple[SequenceId, int]]:
        """Return the sequences that reported progress at `clock`, a recent step, and have not ended."""
        reporting = self._reporting[clock % self._progress_tokens]
        return [(i, decoding.offset + clock + 1 - decoding.state.prompt_tokens) for i, decoding in reporting.items()]

    def _decode(self, joining: list[SequenceState]) -> Advance:
        """Give one token to every decoding sequence and to each whose whole prompt is computed in this step."""
        self._clock += 1
        clock, size = self._clock, len(self._decoding)
        self._kv_read += size
        scheduled, kv_read = size + len(joining), self._kv_read + sum(state.tokens for state in joining)
        prefilled = sum(state.chunk for state in joining if state.chunk > 1)
        duration_s = self._step_time(scheduled, kv_read, prefilled) if scheduled else 0.0
        used = self._paged.used_tokens
        finished = self._end_due(clock)
        grown = self._grown_at(clock)
        first = [state.id for state in joining if state.tokens == state.prompt_tokens]
        reporting = 1 % self._progress_tokens
        for state in joining:
            state.computed = state.tokens
            state.tokens += 1
            if state.tokens == state.final_tokens:
                self._retire_one(state)
                finished.append(state.id)
                continue
            self._join(state)
            if (generated := state.tokens - state.prompt_tokens) % self._progress_tokens == reporting:
                grown.append((state.id, generated))
        return Advance(duration_s, scheduled, used * duration_s, grown, first, finished)

    def _end_due(self, clock: int) -> list[SequenceId]:
        ending = self._ends.pop(clock, None)
        if ending is None:
            return []
        if len(ending) > 1:
            ending.sort(key=lambda decoding: decoding.place)
        for decoding in ending:
            self._leave(decoding)
            self._retire_one(decoding.state)
        return [decoding.state.id for decoding in ending]

    def _retire_one(self, state: SequenceState) -> None:
        self._kv.free(state)
        del self._states[state.id]

    def _join(self, state: SequenceState) -> None:
        offset = state.computed - self._clock
        decoding = self._decoding[state.id] = _Decoding(state, offset, self._next_place)
        self._next_place += 1
        self._kv_read += state.computed
        self._ends.setdefault(state.final_tokens - 1 - offset, []).append(decoding)
        self._blocks_due[-offset % self._block_size] += 1
        self._reporting[(state.prompt_tokens - offset) % self._progress_tokens][state.id] = decoding

    def _leave(self, decoding: _Decoding) -> None:
        """Remove a sequence from the tables and bring its state up to date."""
        state, offset = decoding.state, decoding.offset
        state.computed = offset + self._clock
        state.tokens = state.computed + 1
        state.held = -(-state.computed // self._block_size) * self._block_size
        del self._decoding[state.id]
        self._kv_read -= state.computed
        self._blocks_due[-offset % self._block_size] -= 1
        del self._reporting[(state.prompt_tokens - offset) % self._progress_tokens][state.id]

    def _flush_states(self) -> None:
        """Hand all sequences over to the parent class."""
        for decoding in list(self._decoding.values()):
            self._leave(decoding)
            self._running.append(decoding.state)
        self._ends.clear()

    def _finish_step_in_chunks(self, joining: list[SequenceState], budget: int) -> Advance:
        """Let the parent class finish a step that has its blocks and has admitted `joining`."""
        self._flush_states()
        for state in self._running:
            state.chunk = 1
            if state.computed == state.held:
                state.held += self._block_size
        self._running += joining
        self._admit_waiting(budget)
        return self._to_advance(self._execute([]))

    def _to_advance(self, step: StepResult) -> Advance:
        """Convert the parent's result. Take the sequences back when no prompt is being prefilled in chunks."""
        grown = [
            (sequence_id, self.generated(sequence_id)) for sequence_id in step.emitted if sequence_id in self._states
        ]
        if all(state.tokens - state.computed == 1 and state.tokens > state.prompt_tokens for state in self._running):
            running, self._running = self._running, []
            for state in running:
                self._join(state)
        return advance_of(step, step.kv_used_tokens, grown, self._progress_tokens)
