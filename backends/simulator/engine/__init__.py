"""The simulated engine without a clock: its decisions at each step, and the duration of each step.

Nothing here reads the time, sleeps or does I/O. The caller submits sequences and calls `step`, which returns the step's
duration and the sequences that got a token. A server sleeps for the duration; a discrete-event simulation adds it to
its virtual time.
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
