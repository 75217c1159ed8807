"""The training process: the values that it takes and returns, and the parent's side of it."""

import asyncio
import os
import sys
from typing import Any, Literal

import msgspec

from gateway.errors import TrainerFailed

TrainingResult = Literal["promoted", "rejected", "too_few_rows", "busy"]
"""promoted: the new model serves. rejected: it was not better. busy: another process trains."""

LIMIT_S = 3600.0
"""Longest training; after it the trainer is killed."""

TRAINER = (sys.executable, "-P", "-m", "gateway.training.trainer")


class TrainingOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to train on, and with how many threads."""

    database_url: str
    features_version: str
    window_rows: int
    min_rows: int
    threads: int = 1


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a training.

    Attributes:
        outcome: what happened.
        rows: in the window.
        needed: rows that are needed, if they were too few.
        version: of the new model.
        against: name of the champion.
        metrics: of the challenger on the newest rows.
        champion: metrics of the champion on these rows.
        seconds: duration.
    """

    outcome: TrainingResult
    rows: int = 0
    needed: int = 0
    version: int | None = None
    against: str | None = None
    metrics: dict[str, Any] = {}
    champion: dict[str, Any] = {}
    seconds: float = 0.0


class TrainerProcess:
    """Runs one training in a process that watches its stdin, so it ends when this process ends."""

    def __init__(self, order: TrainingOrder, command: tuple[str, ...] = TRAINER) -> None:
        self._order = order
        self._command = command

    async def run(self) -> TrainingReport:
        """Train and return the trainer's report; if this call is cancelled, the trainer is killed.

        Raises:
            TrainerFailed: the trainer crashed, was killed, or took too long.
        """
        threads = str(self._order.threads)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            start_new_session=True,  # Ctrl-C in a terminal must reach only the gateway, which then ends the trainer
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self._exchange(process)
        except TimeoutError as error:
            raise TrainerFailed(f"it took more than {LIMIT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _exchange(self, process: asyncio.subprocess.Process) -> TrainingReport:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(self._order) + b"\n")
            await process.stdin.drain()
            report = await process.stdout.read()
            return msgspec.json.decode(report, type=TrainingReport)
        except (msgspec.DecodeError, BrokenPipeError, ConnectionResetError) as error:
            raise TrainerFailed(f"it ended with status {await process.wait()} and no report") from error
