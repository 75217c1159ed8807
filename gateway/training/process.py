"""Runs the trainer as a process beside the gateway's own."""

import asyncio
import os
import sys

import msgspec

from gateway.errors import TrainerFailed
from gateway.training.report import TrainingOrder, TrainingReport

LIMIT_S = 3600.0
"""A trainer that takes longer is stuck."""

TRAINER = (sys.executable, "-P", "-m", "gateway.training.trainer")


class TrainerProcess:
    """Runs one training in a process that ends with us, however we end: it watches its stdin."""

    def __init__(self, order: TrainingOrder, command: tuple[str, ...] = TRAINER) -> None:
        self._order = order
        self._command = command

    async def run(self) -> TrainingReport:
        """Train, and give what the trainer reports; cancelled, it is killed.

        Raises:
            TrainerFailed: it crashed, was killed, or took too long.
        """
        threads = str(self._order.threads)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends its trainer itself
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self._converse(process)
        except TimeoutError as error:
            raise TrainerFailed(f"it took more than {LIMIT_S:.0f} s") from error
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _converse(self, process: asyncio.subprocess.Process) -> TrainingReport:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(self._order) + b"\n")
            await process.stdin.drain()
            said = await process.stdout.read()
            return msgspec.json.decode(said, type=TrainingReport)
        except (msgspec.DecodeError, BrokenPipeError, ConnectionResetError) as error:
            raise TrainerFailed(f"it ended with status {await process.wait()} and no report") from error
