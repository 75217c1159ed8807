"""One simulated engine, described; and built from its description."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.simulator.engine import (
    PRESETS,
    ContinuousEngine,
    Engine,
    FcfsQueue,
    PagedKV,
    Preset,
    PriorityQueue,
    ReservedKV,
    StaticEngine,
)

Kind = Literal["vllm", "tgi", "static"]
SchedulingPolicy = Literal["fcfs", "priority"]

_POSITIVE = (
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_batch_size",
    "max_concurrent_requests",
    "speed",
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an operator would tell the engine on its command line.

    None takes the preset's `kv_tokens` and `max_model_len`, the latter cut to what the memory holds; for the limits it
    means no limit. `speed` is how many virtual seconds pass in a real one. `max_num_queued_reqs` counts sequences in
    flight, running ones among them, as vLLM does.

    Raises:
        ValueError: a value is out of range, or `max_model_len` exceeds the KV memory.
    """

    kind: Kind = "vllm"
    model: str = "magnus-sim-8b"
    preset: str = "llama-8b-a100"
    kv_tokens: int | None = None
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    max_num_queued_reqs: int | None = None
    scheduling_policy: SchedulingPolicy = "fcfs"
    max_batch_size: int = 7
    max_concurrent_requests: int = 128
    tgi_version: Literal["1", "2", "3"] = "3"
    speed: float = 1.0
    seed: int = 0
    truth: Path | None = None
    workload: Path | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset: {self.preset!r} is none of {', '.join(PRESETS)}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be positive")
        if self.capacity_tokens < 1:
            raise ValueError(f"kv_tokens: {self.kv_tokens} do not fill one block of {self.block_size}")
        if not 0 < self.context_tokens <= self.capacity_tokens:
            raise ValueError(
                f"max_model_len: {self.max_model_len} is not within 1 and {self.capacity_tokens} KV tokens"
            )

    @property
    def hardware(self) -> Preset:
        """The preset by its name."""
        return PRESETS[self.preset]

    @property
    def num_gpu_blocks(self) -> int:
        """KV blocks, with the one that vLLM keeps for itself."""
        kv_tokens = self.hardware.kv_tokens if self.kv_tokens is None else self.kv_tokens
        return kv_tokens // self.block_size + 1

    @property
    def capacity_tokens(self) -> int:
        """KV memory in whole blocks, in tokens."""
        return (self.num_gpu_blocks - 1) * self.block_size

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        if self.max_model_len is None:
            return min(self.hardware.max_model_len, self.capacity_tokens)
        return self.max_model_len


def build_engine(config: EngineConfig) -> Engine:
    """Return the engine of the configured kind, empty.

    >>> build_engine(EngineConfig(kind="vllm", kv_tokens=4096)).kv_capacity_tokens
    4096
    """
    step_time = config.hardware.step_time
    if config.kind == "static":
        return StaticEngine(step_time, config.capacity_tokens, max_batch_size=config.max_batch_size)
    reserving = config.kind == "tgi"
    prioritised = config.scheduling_policy == "priority" and not reserving
    return ContinuousEngine(
        step_time,
        ReservedKV(config.capacity_tokens) if reserving else PagedKV(config.num_gpu_blocks, config.block_size),
        PriorityQueue() if prioritised else FcfsQueue(),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
