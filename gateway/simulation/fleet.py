"""Simulated engines in simulated time, seen as the gateway sees engines: a state now and then, tokens as they come."""

from dataclasses import dataclass

from backends.simulator.config import EngineConfig, build_engine
from backends.simulator.engine import Sequence, StepResult
from gateway.scheduling.messages import BackendState
from gateway.simulation.workload import Arrival

MODEL = "model"
"""All engines serve one model: what the rows call theirs is who answered them."""


@dataclass(slots=True)
class Usage:
    """KV occupancy over time: the integral of used tokens, and the time that it was taken over."""

    token_seconds: float = 0.0
    seconds: float = 0.0


class SimulatedBackend:
    """One engine and the step that it is in."""

    def __init__(self, name: str, config: EngineConfig) -> None:
        self.name = name
        self.usage = Usage()
        self._engine = build_engine(config)
        self._block_tokens = config.block_size
        self._context_tokens = config.context_tokens
        self._in_step: StepResult | None = None

    @property
    def preemptions(self) -> int:
        """Sequences that lost their KV memory, since the start."""
        return self._engine.preemptions

    def accepts(self, arrival: Arrival) -> bool:
        """Hand a request to the engine; tell whether it takes it, as it does if the context has room for an answer."""
        room = self._context_tokens - arrival.prompt_tokens
        if room < 1:
            return False
        tokens = arrival.prompt_tokens, arrival.output_tokens, room
        self._engine.submit(Sequence(arrival.id, *tokens, arrival_s=arrival.arrival_s))
        return True

    def begin_step(self) -> float | None:
        """Begin the next step if none is under way and there is work; return how long it takes."""
        if self._in_step is not None or not (self._engine.running or self._engine.waiting):
            return None
        step = self._in_step = self._engine.step()
        self.usage.token_seconds += self._engine.kv_used_tokens * step.duration_s
        self.usage.seconds += step.duration_s
        return step.duration_s

    def end_step(self) -> StepResult:
        """End the step that is under way; its tokens are there now."""
        step, self._in_step = self._in_step, None
        if step is None:
            raise RuntimeError(f"{self.name} is in no step")
        return step

    def state(self) -> BackendState:
        """What a look at the engine shows."""
        return BackendState(
            name=self.name,
            models=frozenset({MODEL}),
            healthy=True,
            kv_capacity_tokens=self._engine.kv_capacity_tokens,
            kv_used_tokens=self._engine.kv_used_tokens,
            kv_block_tokens=self._block_tokens,
            max_model_len=self._context_tokens,
            waiting=self._engine.waiting,
            preemptions=self._engine.preemptions,
        )

    @property
    def occupancy(self) -> float:
        """Mean share of the KV memory in use while the engine worked."""
        if not self.usage.seconds:
            return 0.0
        return self.usage.token_seconds / self.usage.seconds / self._engine.kv_capacity_tokens
