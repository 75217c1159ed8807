"""Simulated engines in simulated time, and how the gateway scrapes them."""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
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
"""Every engine serves this one model. The model of a row only says which model wrote its answer."""

SCRAPE_INTERVAL_S = 1.0
"""The gateway's own interval between two scrapes."""


@dataclass(slots=True)
class KvUsage:
    """KV memory in use over time.

    Attributes:
        token_seconds: integral of used tokens over seconds.
        waiting_token_seconds: the part of it during which requests waited.
        waiting_seconds: seconds during which requests waited.
    """

    token_seconds: float = 0.0
    waiting_token_seconds: float = 0.0
    waiting_seconds: float = 0.0


class SimulatedBackend:
    """One engine, and the steps that it is running.

    Several steps that only decode are run as one stretch. The stretch is cut after the current step when a request
    arrives. A scrape runs the stretch up to its own time. Requests count as waiting while any is in the gateway's queue
    or was left out of the engine's batch.
    """

    def __init__(self, name: str, config: EngineConfig, progress_tokens: int = PROGRESS_TOKENS) -> None:
        self.name = name
        self.config = config
        self.usage = KvUsage()
        self.ends_s = inf
        """When the current step or stretch ends; infinity if the engine is idle."""
        self._engine = advancing_engine(config, progress_tokens)
        self._stretch_steps = progress_tokens
        self._stretch_s: list[float] = []  # when each step of the stretch ends
        self._steps_run = 0
        self._advance: Advance | None = None  # what the steps run so far produced
        self._began_s = 0.0
        self._left_out = False
        self._waited_s = 0.0

    @property
    def preemptions(self) -> int:
        """Sequences that lost their KV memory, since the start."""
        return self._engine.preemptions

    @property
    def kv_capacity_tokens(self) -> int:
        """Size of the KV memory in tokens."""
        return self._engine.kv_capacity_tokens

    def accepts(self, arrival: Arrival, now: float) -> bool:
        """Give a request to the engine. Return False if its prompt leaves no room in the context for an answer."""
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
        """Begin the next step or stretch if the engine is free and has work. Return whether one was begun.

        Args:
            now: seconds.
            waited_s: total time, so far, in which requests waited in the gateway's queue.
        """
        if self.ends_s < inf or not (self._engine.running or self._engine.waiting):
            return False
        self._count(waited_s, used_tokens=0.0)  # the engine was idle since its last step
        self._began_s = now
        durations = self._engine.upcoming(self._stretch_steps) if isinstance(self._engine, BatchedStepEngine) else []
        self._stretch_s, self._steps_run = list(accumulate(durations, initial=now))[1:], 0
        if durations:
            self.ends_s = self._stretch_s[-1]
        else:
            self._advance = self._engine.advance()
            self.ends_s = now + self._advance.duration_s
        self._left_out = self._engine.waiting > 0
        return True

    def end(self, waited_s: float = 0.0) -> Advance:
        """End the current step or stretch and return what it produced."""
        self._run_to(self.ends_s)
        advance, self._advance, self.ends_s = self._advance, None, inf
        self._stretch_s = []
        if advance is None:
            raise RuntimeError(f"{self.name} is not running a step")
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
        """Return what a scrape of the engine shows now."""
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
        """Run the steps of the stretch that have begun. Memory changes at the beginning of a step."""
        begun = min(bisect_right(self._stretch_s, now) + 1, len(self._stretch_s))
        if begun > self._steps_run and isinstance(self._engine, BatchedStepEngine):
            more = self._engine.decode(begun - self._steps_run)
            self._advance = more if self._advance is None else self._advance.then(more)
            self._steps_run = begun

    def _count(self, waited_s: float, *, used_tokens: float) -> None:
        seconds, self._waited_s = waited_s - self._waited_s, waited_s
        self.usage.waiting_seconds += seconds
        self.usage.waiting_token_seconds += seconds * used_tokens


@dataclass(slots=True)
class ScrapeModel:
    """What the gateway learns from scraping the engines, and how often.

    Args:
        interval_s: seconds between two scrapes of all engines.
        frozen_from_s: from this time on, every scrape returns the metrics of the first one after it, with a new time.
        blind: scrapes show that an engine exists and return no metrics.
    """

    interval_s: float = SCRAPE_INTERVAL_S
    frozen_from_s: float = inf
    blind: bool = False
    _frozen: dict[str, BackendState] = field(default_factory=dict)

    def scrape(self, backend: SimulatedBackend, now: float) -> BackendState:
        """Return what a scrape of a backend shows now."""
        state = backend.state(now)
        if self.blind:
            return BackendState(state.name, state.models, healthy=True, scraped_s=now)
        if now < self.frozen_from_s:
            return state
        return replace(self._frozen.setdefault(state.name, state), scraped_s=now)


def advancing_engine(config: EngineConfig, progress_tokens: int = PROGRESS_TOKENS) -> AdvancingEngine:
    """Return an empty engine of the configured kind."""
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
