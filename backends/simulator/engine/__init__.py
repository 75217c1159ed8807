"""The simulated engine without a clock: what an inference engine decides at each step, and how long the step takes.

Nothing here reads the time, sleeps or does I/O. A caller submits sequences, calls `step` and is told how long the step
takes and who got a token; it may live that long (the server) or add it to a virtual time (a discrete-event simulation).
"""

from backends.simulator.engine.base import Engine
from backends.simulator.engine.continuous import ContinuousEngine
from backends.simulator.engine.kv_cache import PagedKV, ReservedKV
from backends.simulator.engine.sequence import Sequence, SequenceId, SequenceTooLongError, StepResult
from backends.simulator.engine.static import StaticEngine
from backends.simulator.engine.step_time import PRESETS, Preset, StepTime
from backends.simulator.engine.waiting import FcfsQueue, PriorityQueue

__all__ = [
    "PRESETS",
    "ContinuousEngine",
    "Engine",
    "FcfsQueue",
    "PagedKV",
    "Preset",
    "PriorityQueue",
    "ReservedKV",
    "Sequence",
    "SequenceId",
    "SequenceTooLongError",
    "StaticEngine",
    "StepResult",
    "StepTime",
]
