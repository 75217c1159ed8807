"""The continuous engine for long simulations: what all running sequences do alike is counted once, not once each.

Between two events (someone is admitted, ends, or finds no block) every running sequence gets one token a step. So a
sequence's counts are the engine's clock of steps and an offset; who ends at a step, who needs a block and whose answer
is worth a message is looked up by that clock. A step costs what happens in it, not the size of the batch.

Everything out of the ordinary (a block is missing, a prompt is prefilled in chunks, an abort) is left to the parent
class, on states brought up to date; `tests/property/test_batched_engine.py` holds the two against each other.
"""

from backends.simulator.engine.advance import Advance, advance_of
from backends.simulator.engine.continuous import ContinuousEngine
from backends.simulator.engine.kv_cache import PagedKV
from backends.simulator.engine.sequence import SequenceId, SequenceState, StepResult
from backends.simulator.engine.step_time import StepTime
from backends.simulator.engine.waiting import WaitingQueue


class _Decoding:
    """A sequence whose prompt is computed. The KV of `offset + clock` of its tokens is in memory."""

    __slots__ = ("offset", "place", "state")

    def __init__(self, state: SequenceState, offset: int, place: int) -> None:
        self.state = state
        self.offset = offset
        self.place = place


class BatchedStepEngine(ContinuousEngine):
    """A `ContinuousEngine` on paged memory whose steps cost little.

    Args:
        step_time: of a step.
        kv_cache: the memory.
        waiting: the engine's own queue.
        max_num_seqs: most sequences in the batch.
        max_num_batched_tokens: most tokens computed in a step.
        progress_tokens: an answer is worth a message every so many tokens.
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
        self._places = 0
        self._kv_read = 0
        self._decoding: dict[SequenceId, _Decoding] = {}  # in the order of admission
        self._ends: dict[int, list[_Decoding]] = {}  # by the clock after the step that is the last
        self._blocks_due = [0] * self._block_size  # by the clock before the step, modulo block size
        self._worth: list[dict[SequenceId, _Decoding]] = [{} for _ in range(progress_tokens)]  # by the clock after it

    @property
    def running(self) -> int:
        """Sequences in the current batch."""
        return len(self._decoding) + len(self._running)

    def holds(self, sequence_id: SequenceId) -> bool:
        """Tell whether a sequence is in the engine, running or waiting."""
        return sequence_id in self._states

    def generated(self, sequence_id: SequenceId) -> int:
        """Return the tokens of an answer so far."""
        if (decoding := self._decoding.get(sequence_id)) is not None:
            return decoding.offset + self._clock + 1 - decoding.state.prompt_tokens
        state = self._states[sequence_id]
        return state.tokens - state.prompt_tokens

    def abort(self, sequence_id: SequenceId) -> bool:
        """Drop a sequence and free its memory at once; tell whether it was still there."""
        self._write_out()
        return super().abort(sequence_id)

    def step(self) -> StepResult:
        """Run one step and list everybody who got a token."""
        self._write_out()
        return super().step()

    def advance(self) -> Advance:
        """Run one step, and list only those who are worth a message."""
        size, due = len(self._decoding), self._blocks_due[self._clock % self._block_size]
        if self._running or due > self._paged.free_blocks or size > self._max_num_batched_tokens:
            return self._told(self.step())
        if due:
            self._paged.take_blocks(due)
        budget = self._max_num_batched_tokens - size
        joining: list[SequenceState] = []
        while budget and len(self._waiting) and size + len(joining) < self._max_num_seqs:
            state = self._waiting.peek()
            reused = self._paged.reusable(state)
            if state.tokens - reused > budget:  # a chunk of its prompt, if anything
                return self._finish_step_in_chunks(joining, budget)
            state.computed, state.chunk = reused, state.tokens - reused
            if not self._paged.admit(state, state.chunk, beside_others=bool(size or joining)):
                state.computed = state.chunk = 0
                break
            budget -= state.chunk
            joining.append(self._waiting.pop())
        return self._decode(joining)

    def upcoming(self, most: int) -> list[float]:
        """Return how long each of the next steps takes, as far ahead as nothing but decoding happens in them.

        The last one may be somebody's last. Empty if something else happens in the very next step.

        Args:
            most: steps to look ahead.
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
        """Run several steps at once, no more than `upcoming` has just foretold."""
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
        """Whether the next step admits the head of the queue. While nobody ends it will not later either."""
        size = len(self._decoding)
        budget = self._max_num_batched_tokens - size
        if not len(self._waiting) or size >= self._max_num_seqs or not budget:
            return False
        head, due = self._waiting.peek(), self._blocks_due[self._clock % self._block_size]
        chunk = min(head.tokens - self._paged.reusable(head), budget)
        return self._paged.would_admit(head, chunk, beside_others=True, due=due)

    def _grown_at(self, clock: int) -> list[tuple[SequenceId, int]]:
        """Who became worth a message at a clock, not long ago, and goes on."""
        worth = self._worth[clock % self._progress_tokens]
        return [(i, decoding.offset + clock + 1 - decoding.state.prompt_tokens) for i, decoding in worth.items()]

    def _decode(self, joining: list[SequenceState]) -> Advance:
        """Give everybody a token: the running and those whose whole prompt is computed in this step."""
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
        worth = 1 % self._progress_tokens
        for state in joining:
            state.computed = state.tokens
            state.tokens += 1
            if state.tokens == state.final_tokens:
                self._retire_one(state)
                finished.append(state.id)
                continue
            self._join(state)
            if (generated := state.tokens - state.prompt_tokens) % self._progress_tokens == worth:
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
        decoding = self._decoding[state.id] = _Decoding(state, offset, self._places)
        self._places += 1
        self._kv_read += state.computed
        self._ends.setdefault(state.final_tokens - 1 - offset, []).append(decoding)
        self._blocks_due[-offset % self._block_size] += 1
        self._worth[(state.prompt_tokens - offset) % self._progress_tokens][state.id] = decoding

    def _leave(self, decoding: _Decoding) -> None:
        """Take a sequence out of the counts and bring its state up to date."""
        state, offset = decoding.state, decoding.offset
        state.computed = offset + self._clock
        state.tokens = state.computed + 1
        state.held = -(-state.computed // self._block_size) * self._block_size
        del self._decoding[state.id]
        self._kv_read -= state.computed
        self._blocks_due[-offset % self._block_size] -= 1
        del self._worth[(state.prompt_tokens - offset) % self._progress_tokens][state.id]

    def _write_out(self) -> None:
        """Hand all sequences over to the parent class."""
        for decoding in list(self._decoding.values()):
            self._leave(decoding)
            self._running.append(decoding.state)
        self._ends.clear()

    def _finish_step_in_chunks(self, joining: list[SequenceState], budget: int) -> Advance:
        """Let the parent class finish a step in which the running have their blocks and some have been admitted."""
        self._write_out()
        for state in self._running:
            state.chunk = 1
            if state.computed == state.held:
                state.held += self._block_size
        self._running += joining
        self._admit_waiting(budget)
        return self._told(self._execute([]))

    def _told(self, step: StepResult) -> Advance:
        """Return the parent's step as an advance, and take over again as soon as nobody is prefilled in chunks."""
        grown = [
            (sequence_id, self.generated(sequence_id)) for sequence_id in step.emitted if sequence_id in self._states
        ]
        if all(state.tokens - state.computed == 1 and state.tokens > state.prompt_tokens for state in self._running):
            running, self._running = self._running, []
            for state in running:
                self._join(state)
        return advance_of(step, step.kv_used_tokens, grown, self._progress_tokens)
