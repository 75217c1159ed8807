"""Gives the engine's own steps a core to themselves, as a GPU would have: what shares the machine must not slow them.

Without it the gateway, the clients and the engine's HTTP side take turns with the model on two cores, and what is
measured is that.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

MODEL_PROCESS = "VLLM::Worker"


@contextmanager
def apart(server: int) -> Iterator[bool]:
    """Put the model of a running server on one core, and all else that is ours on the others, until the block ends.

    Args:
        server: the process that started the engine.

    Yields:
        Whether that was possible: with one core it is not.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield False
        return
    descendants = psutil.Process(server).children(recursive=True)
    models = [process for process in descendants if process.name().startswith(MODEL_PROCESS)]
    for process in descendants:
        _put(process.pid, {cores[0]} if process in models else set(cores[1:]))
    os.sched_setaffinity(0, cores[1:])  # and whatever is started from here: the gateway, its database
    try:
        yield bool(models)
    finally:
        os.sched_setaffinity(0, cores)


def _put(pid: int, cores: set[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
