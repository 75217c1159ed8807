"""The engine's clock: one task that steps the pure engine in virtual time, and hands its tokens to who waits for them.

Virtual time runs `speed` times as fast as real time. Each step is due when the previous one was due plus its duration,
so lateness does not add up; a loop that is late does not sleep but still lets other tasks run.
"""

import asyncio
from collections.abc import Sequence as Seq
from dataclasses import replace

from backends.simulator.engine import Engine, Sequence, SequenceId, StepResult
from backends.simulator.metrics import EngineMetrics


class Choice:
    """One sequence of a request as its client sees it."""

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
        """Return 'length' where `max_new_tokens` ended it, 'stop' where the answer did, None while it goes on."""
        if not self.finished:
            return None
        return "length" if self.sequence.output_tokens > self.sequence.max_new_tokens else "stop"

    def take_unsent(self) -> range:
        """Return the tokens, counted from 0, that were produced since the last call."""
        unsent = range(self._sent, self.produced)
        self._sent = self.produced
        return unsent


class Generation:
    """One HTTP request inside the engine: its choices, and a bell that rings when any of them changes."""

    def __init__(self, sequences: Seq[Sequence]) -> None:
        self.choices = [Choice(self, sequence) for sequence in sequences]
        self.aborted = False
        self._changed = asyncio.Event()

    @property
    def done(self) -> bool:
        """Tell whether no more tokens will come; a request that lost a choice is over."""
        return self.aborted or self.failed or all(choice.finished for choice in self.choices)

    @property
    def failed(self) -> bool:
        """Tell whether a choice was lost for want of memory."""
        return any(choice.failed for choice in self.choices)

    def notify(self) -> None:
        """Wake the face that waits in `changed`."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()
        self._changed.clear()

    async def finish(self) -> None:
        """Wait until it is done."""
        while not self.done:
            await self.changed()


class EngineLoop:
    """The only owner of an engine in a server."""

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
        """HTTP requests in flight."""
        return len(self._generations)

    @property
    def sequences(self) -> int:
        """Sequences in flight, running and waiting."""
        return len(self._choices)

    def submit(self, sequences: Seq[Sequence]) -> Generation:
        """Queue a request's sequences together; their ids, arrival and batch are set here.

        Raises:
            SequenceTooLongError: one of them can never fit; none is queued.
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
        """Drop what is left of a request and free its memory; after its end this does nothing."""
        for choice in generation.choices:
            if self._choices.pop(choice.sequence.id, None) is not None:
                self.engine.abort(choice.sequence.id)
                generation.aborted = True
        self._generations.discard(generation)
        generation.notify()

    def abort_all(self) -> None:
        """Drop every request, as at shutdown."""
        for generation in tuple(self._generations):
            self.abort(generation)

    async def run(self) -> None:
        """Step the engine for ever; without work, wait for some."""
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
        """Hand the step's tokens on; sequences that were aborted meanwhile are no longer known."""
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
