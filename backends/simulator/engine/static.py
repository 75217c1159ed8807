"""Static batching: one batch at a time, padded to its longest prompt, finished when its longest answer ends."""

from collections import deque

from backends.simulator.engine.sequence import Sequence, SequenceId, SequenceTooLongError, StepResult
from backends.simulator.engine.step_time import StepTime


class StaticEngine:
    """An engine like `model.generate()`: every sequence of a batch takes as long as the longest one.

    A batch is admitted if its padded prompts fit. The lengths of the answers are not known then, so the batch may run
    out of memory later. Then all its sequences fail together, as in PyTorch.
    """

    def __init__(self, step_time: StepTime, kv_capacity_tokens: int, *, max_batch_size: int = 7) -> None:
        self.preemptions = 0
        self.kv_capacity_tokens = kv_capacity_tokens
        self._step_time = step_time
        self._max_batch_size = max_batch_size
        self._waiting: deque[Sequence] = deque()
        self._batch: dict[SequenceId, Sequence] = {}
        self._prompt_tokens = 0
        self._answer_tokens = 0
        self._generated = 0

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        return len(self._batch)

    @property
    def waiting(self) -> int:
        """Number of sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        """KV memory of the padded batch, in tokens."""
        return len(self._batch) * (self._prompt_tokens + self._generated)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: the sequence does not fit the memory even alone.
        """
        if sequence.final_tokens > self.kv_capacity_tokens:
            raise SequenceTooLongError(sequence, self.kv_capacity_tokens)
        self._waiting.append(sequence)

    def abort(self, sequence_id: SequenceId) -> bool:
        """Remove a sequence and free its share of the memory. Return whether it was still in the engine."""
        if self._batch.pop(sequence_id, None) is not None:
            self._answer_tokens = self._longest_answer()
            return True
        for sequence in self._waiting:
            if sequence.id == sequence_id:
                self._waiting.remove(sequence)
                return True
        return False

    def step(self) -> StepResult:
        """Prefill the next batch, or decode one token of the current batch."""
        prefill = not self._batch
        if prefill and not self._form_batch():
            return StepResult(0.0)
        self._generated += 1
        if self.kv_used_tokens > self.kv_capacity_tokens:
            return StepResult(self._pass_s(prefill=prefill), failed=self._clear())
        duration_s = self._pass_s(prefill=prefill)
        if self._generated < self._answer_tokens:
            return StepResult(duration_s)
        ids = self._clear()
        return StepResult(duration_s, first=ids, finished=ids)

    def _form_batch(self) -> bool:
        """Take sequences that may share a batch from the head of the queue, up to the batch size and the memory."""
        self._prompt_tokens = self._generated = 0
        while self._waiting and len(self._batch) < self._max_batch_size:
            head = self._waiting[0]
            longest = max(self._prompt_tokens, head.prompt_tokens)
            too_large = (len(self._batch) + 1) * longest > self.kv_capacity_tokens
            if too_large or any(member.batch != head.batch for member in self._batch.values()):
                break
            self._prompt_tokens = longest
            self._batch[head.id] = self._waiting.popleft()
        self._answer_tokens = self._longest_answer()
        return bool(self._batch)

    def _longest_answer(self) -> int:
        return max((sequence.answer_tokens for sequence in self._batch.values()), default=0)

    def _pass_s(self, *, prefill: bool) -> float:
        size = len(self._batch)
        prefill_tokens = size * self._prompt_tokens if prefill else 0
        return self._step_time(size, size * (self._prompt_tokens + self._generated), prefill_tokens)

    def _clear(self) -> list[SequenceId]:
        ids = list(self._batch)
        self._batch.clear()
        return ids
