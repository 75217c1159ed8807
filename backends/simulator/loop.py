"""The engine's clock: one task that steps the pure engine and delivers its tokens to the waiting requests.

Virtual time runs `speed` times as fast as real time. Each step is due when the previous step was due plus its duration,
so delays do not add up. A loop that is late does not sleep, but lets other tasks run.
"""

import asyncio
from collections.abc import Sequence as Seq
from dataclasses import replace

from backends.simulator.engine import Engine, Sequence, SequenceId, StepResult
from backends.simulator.metrics import EngineMetrics


class Choice:
    """One sequence of a request, as its client sees it."""

    __slots__ = ("_sent", "failed", "finished", "generation", "produced", "sequence")

    def __init__(self, generation: "Generation", sequence: Sequence) -> None:
        self.generation = generation
        self.sequence = sequence
        self.produced = 0
        self._sent = 0
        self.finished = False
        self.failed = False

    @property
    def finish_reason(self) -> str | None:
        """Return 'length' if `max_new_tokens` ended the answer, 'stop' if it ended by itself, None before its end."""
        if not self.finished:
            return None
        return "length" if self.sequence.output_tokens > self.sequence.max_new_tokens else "stop"

    def take_unsent(self) -> range:
        """Return the indexes of the tokens that were produced since the last call."""
        unsent = range(self._sent, self.produced)
        self._sent = self.produced
        return unsent


class Generation:
    """One HTTP request inside the engine: its choices, and an event that is set when any of them changes."""

    def __init__(self, sequences: Seq[Sequence]) -> None:
        self.choices = [Choice(self, sequence) for sequence in sequences]
        self.aborted = False
        self._changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """Return whether no more tokens will come. A request is over when it has lost one choice."""
        return self.aborted or self.failed or all(choice.finished for choice in self.choices)

    @property
    def failed(self) -> bool:
        """Return whether the engine lost a choice because memory ran out."""
        return any(choice.failed for choice in self.choices)

    def notify(self) -> None:
        """Wake the task that waits in `changed`."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()
        self._changed.clear()

    async def finish(self) -> None:
        """Wait until the request is done."""
        while not self.done:
            await self.changed()


class EngineLoop:
    """The task that owns a server's engine. No other code calls the engine."""

    def __init__(self, engine: Engine, metrics: EngineMetrics, *, speed: float = 1.0) -> None:
        self.engine = engine
        self.metrics = metrics
        self._speed = speed
        self._choices: dict[SequenceId, Choice] = {}
        self._generations: set[Generation] = set()
        self._arrived = asyncio.Event()
        self._next_id = 0

    @property
    def requests(self) -> int:
        """Number of HTTP requests in the engine."""
        return len(self._generations)

    @property
    def sequences(self) -> int:
        """Number of sequences in the engine, running and waiting."""
        return len(self._choices)

    def submit(self, sequences: Seq[Sequence]) -> Generation:
        """Queue the sequences of one request. This method sets their ids, arrival time and batch.

        Raises:
            SequenceTooLongError: a sequence does not fit the memory even alone; none is queued.
        """
        arrival_s, first_id = _now_s(), self._next_id
        batch = first_id if len(sequences) > 1 else None
        self._next_id += len(sequences)
        generation = Generation(
            [
                replace(sequence, id=first_id + index, arrival_s=arrival_s, batch=batch)
                for index, sequence in enumerate(sequences)
            ]
        )
        try:
            for choice in generation.choices:
                self.engine.submit(choice.sequence)
                self._choices[choice.sequence.id] = choice
        except ValueError:
            self.abort(generation)
            raise
        self._generations.add(generation)
        self.metrics.submitted += len(sequences)
        self._arrived.set()
        return generation

    def abort(self, generation: Generation) -> None:
        """Remove the unfinished sequences of a request and free their memory. Do nothing if the request has ended."""
        for choice in generation.choices:
            if self._choices.pop(choice.sequence.id, None) is not None:
                self.engine.abort(choice.sequence.id)
                generation.aborted = True
        self._generations.discard(generation)
        generation.notify()

    def abort_all(self) -> None:
        """Abort every request, for a shutdown."""
        for generation in tuple(self._generations):
            self.abort(generation)

    async def run(self) -> None:
        """Step the engine until the task is cancelled. Without work, wait for a request."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            if not self._choices:
                self._arrived.clear()
                await self._arrived.wait()
                due = clock()
            result = self.engine.step()
            due += result.duration_s / self._speed
            await asyncio.sleep(max(0.0, due - clock()))
            self._deliver(result)

    def _deliver(self, result: StepResult) -> None:
        """Deliver the tokens of a step. Sequences that were aborted during the step are skipped."""
        choices, now_s = self._choices, _now_s()
        for sequence_id in result.first:
            if (choice := choices.get(sequence_id)) is not None:
                self.metrics.observe_first_token(choice.sequence.prompt_tokens, now_s - choice.sequence.arrival_s)
        for sequence_id in result.emitted:
            if (choice := choices.get(sequence_id)) is not None:
                self._produce(choice, choice.produced + 1)
        for sequence_id in result.finished:
            if (choice := choices.pop(sequence_id, None)) is not None:
                choice.finished = True
                self._produce(choice, choice.sequence.answer_tokens)
                self._end(choice, now_s)
        for sequence_id in result.failed:
            if (choice := choices.pop(sequence_id, None)) is not None:
                choice.failed = True
                choice.generation.notify()
                self._end(choice, now_s)

    def _produce(self, choice: Choice, produced: int) -> None:
        self.metrics.generation_tokens += produced - choice.produced
        choice.produced = produced
        choice.generation.notify()

    def _end(self, choice: Choice, now_s: float) -> None:
        sequence, generation = choice.sequence, choice.generation
        self.metrics.observe_finish(
            choice.finish_reason or "error", sequence.prompt_tokens, choice.produced, now_s - sequence.arrival_s
        )
        if generation.done:
            self._generations.discard(generation)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
