"""Reserves a core for the engine's model, so that other processes do not slow its steps, as on a GPU.

Otherwise the gateway, the client and the engine's HTTP server would compete with the model for the cores.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

MODEL_PROCESS = "VLLM::Worker"


@contextmanager
def model_on_own_core(server: int) -> Iterator[bool]:
    """Keep the model of a running server on one core and this benchmark's other processes on the rest.

    Args:
        server: id of the process that started the engine.

    Yields:
        Whether the model has a core of its own. It has none on a machine with one core.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield False
        return
    descendants = psutil.Process(server).children(recursive=True)
    models = [process for process in descendants if process.name().startswith(MODEL_PROCESS)]
    for process in descendants:
        _pin(process.pid, {cores[0]} if process in models else set(cores[1:]))
    os.sched_setaffinity(0, cores[1:])  # inherited by the gateway and its database
    try:
        yield bool(models)
    finally:
        os.sched_setaffinity(0, cores)


def _pin(pid: int, cores: set[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
