"""Simulated engines in simulated time, seen as the gateway sees engines: a state now and then, tokens as they come."""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from backends.simulator.config import EngineConfig, build_engine
from backends.simulator.engine import FcfsQueue, PriorityQueue, Sequence
from backends.simulator.engine.advance import Advance, AdvancingEngine, SteppedEngine
from backends.simulator.engine.batched import BatchedStepEngine
from backends.simulator.engine.prefix_cache import PrefixCachingKV
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.scheduling.messages import BackendState
from gateway.simulation.workload import Arrival

MODEL = "model"
"""All engines serve one model: what the rows call theirs is who answered them."""


@dataclass(slots=True)
class Usage:
    """KV occupancy over time: integrals of used tokens over seconds, and the seconds while requests waited."""

    token_seconds: float = 0.0
    waiting_token_seconds: float = 0.0
    waiting_seconds: float = 0.0


class SimulatedBackend:
    """One engine and the steps that it is in.

    Where nothing but decoding happens for several steps, they are run as one stretch. It is cut after the step that is
    under way when a request comes, or a look has to show the engine as of then. Requests count as waiting while any is
    in the gateway's queue, or one was left out of the engine's batch.
    """

    def __init__(self, name: str, config: EngineConfig, progress_tokens: int = PROGRESS_TOKENS) -> None:
        self.name = name
        self.config = config
        self.usage = Usage()
        self.ends_s = inf
        """When what is under way ends."""
        self._engine = advancing_engine(config, progress_tokens)
        self._stretch_steps = progress_tokens
        self._stretch_s: list[float] = []  # when the steps of the stretch end
        self._steps_run = 0
        self._advance: Advance | None = None  # what they came to
        self._began_s = 0.0
        self._left_out = False
        self._waited_s = 0.0

    @property
    def preemptions(self) -> int:
        """Sequences that lost their KV memory, since the start."""
        return self._engine.preemptions

    @property
    def kv_capacity_tokens(self) -> int:
        """KV memory in all, in tokens."""
        return self._engine.kv_capacity_tokens

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Hand a request to the engine; tell whether it takes it, as it does if the context has room for an answer."""
        room = self.config.context_tokens - arrival.prompt_tokens
        if room < 1:
            return False
        if self._stretch_s:
            self._run_to(now)
            del self._stretch_s[self._steps_run :]
            self.ends_s = self._stretch_s[-1]
        tokens = arrival.prompt_tokens, arrival.output_tokens, room
        self._engine.submit(Sequence(arrival.id, *tokens, arrival_s=arrival.arrival_s))
        return True

    def begin(self, now: float, waited_s: float = 0.0) -> bool:
        """Begin what comes next if nothing is under way and there is work; tell whether something is begun.

        Args:
            now: seconds.
            waited_s: for how long in all requests have waited in the gateway's queue by now.
        """
        if self.ends_s < inf or not (self._engine.running or self._engine.waiting):
            return False
        self._count(waited_s, used_tokens=0.0)  # it was idle since its last step
        self._began_s = now
        foretold = self._engine.upcoming(self._stretch_steps) if isinstance(self._engine, BatchedStepEngine) else []
        self._stretch_s, self._steps_run = list(accumulate(foretold, initial=now))[1:], 0
        if foretold:
            self.ends_s = self._stretch_s[-1]
        else:
            self._advance = self._engine.advance()
            self.ends_s = now + self._advance.duration_s
        self._left_out = self._engine.waiting > 0
        return True

    def end(self, waited_s: float = 0.0) -> Advance:
        """End what is under way; its tokens are there now."""
        self._run_to(self.ends_s)
        advance, self._advance, self.ends_s = self._advance, None, inf
        self._stretch_s = []
        if advance is None:
            raise RuntimeError(f"{self.name} is in no step")
        self.usage.token_seconds += advance.kv_token_s
        if self._left_out:
            self._waited_s = waited_s - advance.duration_s
        self._count(waited_s, used_tokens=advance.kv_token_s / advance.duration_s)
        return advance

    def token_seconds_to(self, now: float) -> float:
        """Return the integral of used KV tokens over seconds, up to now."""
        self._run_to(now)
        if self._advance is None:
            return self.usage.token_seconds
        share = min(1.0, (now - self._began_s) / self._advance.duration_s)
        return self.usage.token_seconds + share * self._advance.kv_token_s

    def state(self, now: float) -> BackendState:
        """What a look at the engine shows."""
        self._run_to(now)
        return BackendState(
            name=self.name,
            models=frozenset({MODEL}),
            healthy=True,
            kv_capacity_tokens=self._engine.kv_capacity_tokens,
            kv_used_tokens=self._engine.kv_used_tokens,
            kv_block_tokens=self.config.block_size,
            max_model_len=self.config.context_tokens,
            running=self._engine.running,
            waiting=self._engine.waiting,
            preemptions=self._engine.preemptions,
            static=self.config.kind == "static",
            reserving=self.config.kind == "tgi",
            scraped_s=now,
        )

    def _run_to(self, now: float) -> None:
        """Run the steps of the stretch that have begun: memory changes when a step begins."""
        begun = min(bisect_right(self._stretch_s, now) + 1, len(self._stretch_s))
        if begun > self._steps_run and isinstance(self._engine, BatchedStepEngine):
            more = self._engine.decode(begun - self._steps_run)
            self._advance = more if self._advance is None else self._advance.then(more)
            self._steps_run = begun

    def _count(self, waited_s: float, *, used_tokens: float) -> None:
        seconds, self._waited_s = waited_s - self._waited_s, waited_s
        self.usage.waiting_seconds += seconds
        self.usage.waiting_token_seconds += seconds * used_tokens


def advancing_engine(config: EngineConfig, progress_tokens: int = PROGRESS_TOKENS) -> AdvancingEngine:
    """Return an engine of the configured kind for a simulation, empty."""
    if config.kind != "vllm":
        return SteppedEngine(build_engine(config), progress_tokens)
    return BatchedStepEngine(
        config.hardware.step_time,
        PrefixCachingKV(config.num_gpu_blocks, config.block_size),
        PriorityQueue() if config.scheduling_policy == "priority" else FcfsQueue(),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        progress_tokens=progress_tokens,
    )
