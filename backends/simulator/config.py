"""The configuration of one simulated engine, and the function that builds the engine."""

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
    """The options that a real engine has on its command line.

    Attributes:
        kv_tokens: size of the KV memory in tokens; None takes the preset's.
        max_model_len: context length in tokens; None takes the preset's, or the size of the memory if that is smaller.
        max_num_queued_reqs: limit for running and waiting sequences together, as in vLLM; None is no limit.
        speed: virtual seconds per real second.

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
            raise ValueError(f"preset: {self.preset!r} is unknown; use one of {', '.join(PRESETS)}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be greater than 0")
        if self.capacity_tokens < 1:
            raise ValueError(f"kv_tokens: {self.kv_tokens} is less than one block of {self.block_size} tokens")
        if not 0 < self.context_tokens <= self.capacity_tokens:
            raise ValueError(
                f"max_model_len: {self.max_model_len} must be between 1 and {self.capacity_tokens} (the KV tokens)"
            )

    @property
    def hardware(self) -> Preset:
        """The preset that `preset` names."""
        return PRESETS[self.preset]

    @property
    def num_gpu_blocks(self) -> int:
        """Number of KV blocks, including the null block that vLLM keeps for itself."""
        kv_tokens = self.hardware.kv_tokens if self.kv_tokens is None else self.kv_tokens
        return kv_tokens // self.block_size + 1

    @property
    def capacity_tokens(self) -> int:
        """Size of the usable KV memory in tokens, in whole blocks."""
        return (self.num_gpu_blocks - 1) * self.block_size

    @property
    def context_tokens(self) -> int:
        """Largest number of tokens of prompt and answer together."""
        if self.max_model_len is None:
            return min(self.hardware.max_model_len, self.capacity_tokens)
        return self.max_model_len


def build_engine(config: EngineConfig) -> Engine:
    """Return a new engine of the configured kind.

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
