"""Continuous batching: sequences join and leave the batch at every step.

The order of decisions is that of vLLM's V1 scheduler. First each running sequence, oldest first, gets its next token or
its next chunk of prefill; if a block is missing, a sequence is preempted. Then, unless a sequence was preempted, the
engine admits sequences from the head of its queue while they fit. A preempted sequence loses its KV memory. Later it
prefills its prompt and its generated tokens again, except for blocks that are still in memory.
"""

from backends.simulator.engine.kv_cache import KVCache
from backends.simulator.engine.sequence import Sequence, SequenceId, SequenceState, SequenceTooLongError, StepResult
from backends.simulator.engine.step_time import StepTime
from backends.simulator.engine.waiting import WaitingQueue


class ContinuousEngine:
    """An engine that fills one token budget per step with decodes and chunks of prefill."""

    def __init__(
        self,
        step_time: StepTime,
        kv_cache: KVCache,
        waiting: WaitingQueue,
        *,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 8192,
    ) -> None:
        self.preemptions = 0
        self._step_time = step_time
        self._kv = kv_cache
        self._waiting = waiting
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._running: list[SequenceState] = []
        self._states: dict[SequenceId, SequenceState] = {}
        self._arrivals = 0

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of sequences in the engine's own queue, including preempted ones."""
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        """KV memory that running sequences hold, in tokens."""
        return self._kv.used_tokens

    @property
    def kv_capacity_tokens(self) -> int:
        """Size of the KV memory, in tokens."""
        return self._kv.capacity_tokens

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: the sequence does not fit the memory even alone.
        """
        state = SequenceState(sequence, self._arrivals)
        if not self._kv.fits_alone(state):
            raise SequenceTooLongError(sequence, self._kv.capacity_tokens)
        self._arrivals += 1
        self._states[sequence.id] = state
        self._waiting.push(state)

    def abort(self, sequence_id: SequenceId) -> bool:
        """Remove a sequence and free its memory. Return whether it was still in the engine."""
        state = self._states.pop(sequence_id, None)
        if state is None:
            return False
        if state in self._running:
            self._running.remove(state)
            self._kv.free(state)
        else:
            self._waiting.remove(state)
        return True

    def step(self) -> StepResult:
        """Schedule one step and run it."""
        budget, preempted = self._schedule_running()
        if not preempted:
            self._admit_waiting(budget)
        return self._execute(preempted)

    def _schedule_running(self) -> tuple[int, list[SequenceId]]:
        """Assign a chunk to each running sequence. Return the rest of the budget and the preempted sequences."""
        budget = self._max_num_batched_tokens
        preempted: list[SequenceId] = []
        running, grow = self._running, self._kv.grow
        index = 0
        while index < len(running):
            state = running[index]
            chunk = min(state.tokens - state.computed, budget)
            if state.computed + chunk <= state.held or grow(state, chunk):
                state.chunk = chunk
                budget -= chunk
                index += 1
                continue
            victim = self._waiting.victim(running)
            position = running.index(victim)
            if position < index:  # its place in the batch is gone, so its chunk returns to the budget
                budget += victim.chunk
                index -= 1
            self._preempt(position)
            preempted.append(victim.id)
        return budget, preempted

    def _preempt(self, position: int) -> None:
        state = self._running.pop(position)
        self._kv.preempt(state)
        state.computed = state.chunk = 0
        self._waiting.push_preempted(state)
        self.preemptions += 1

    def _admit_waiting(self, budget: int) -> None:
        """Admit sequences from the head of the queue. Stop at the first that does not fit, so none overtakes."""
        while budget and len(self._waiting) and len(self._running) < self._max_num_seqs:
            state = self._waiting.peek()
            state.computed = self._kv.reusable(state)
            chunk = min(state.tokens - state.computed, budget)
            if not self._kv.admit(state, chunk, beside_others=bool(self._running)):
                state.computed = 0
                return
            state.chunk = chunk
            budget -= chunk
            self._running.append(self._waiting.pop())

    def _execute(self, preempted: list[SequenceId]) -> StepResult:
        """Compute every chunk. A sequence gets its next token when all its tokens are computed."""
        emitted: list[SequenceId] = []
        first: list[SequenceId] = []
        finished: list[SequenceState] = []
        scheduled = kv_tokens = prefill_tokens = 0
        for state in self._running:
            if not (chunk := state.chunk):
                continue  # the budget ran out before this sequence
            scheduled += 1
            state.computed += chunk
            kv_tokens += state.computed
            if chunk > 1:
                prefill_tokens += chunk
            if state.computed < state.tokens:
                continue
            emitted.append(state.id)
            if state.tokens == state.prompt_tokens:
                first.append(state.id)
            state.tokens += 1
            if state.tokens == state.final_tokens:
                finished.append(state)
        used = self._kv.used_tokens
        if finished:
            self._retire(finished)
        duration_s = self._step_time(scheduled, kv_tokens, prefill_tokens) if scheduled else 0.0
        ended = [state.id for state in finished]
        return StepResult(duration_s, emitted, first, ended, preempted, kv_used_tokens=used)

    def _retire(self, finished: list[SequenceState]) -> None:
        for state in finished:
            self._kv.free(state)
            del self._states[state.id]
        self._running = [state for state in self._running if state.tokens < state.final_tokens]
