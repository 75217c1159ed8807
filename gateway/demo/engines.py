"""Starts simulated engines. Each is a process that ends when this process ends, for whatever reason."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.errors import EngineStartError

STOP_S = 5.0
"""An engine that has not stopped by itself after this time is killed."""

KV_TOKENS = 60_000
"""KV memory of each engine: about the free memory of a GPU with 24 GB that serves an 8B model in fp16."""


@asynccontextmanager
async def simulated_engines(count: int, *, speed: float, truth: Path | None) -> AsyncGenerator[list[str]]:
    """Run engines until the block ends, and yield their base URLs.

    Args:
        count: number of engines.
        speed: simulated seconds per second of real time.
        truth: file with the length of each answer; None to draw the lengths at random.

    Raises:
        EngineStartError: an engine ended before it listened.
    """
    async with AsyncExitStack() as stack:
        starting = [_engine(speed, truth, seed) for seed in range(count)]
        yield list(await asyncio.gather(*map(stack.enter_async_context, starting)))


@asynccontextmanager
async def _engine(speed: float, truth: Path | None, seed: int) -> AsyncGenerator[str]:
    options = ["--port", "0", "--kv-tokens", str(KV_TOKENS), "--speed", str(speed), "--seed", str(seed)]
    if truth is not None:
        options += ["--truth", str(truth)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "engine", "--exit-with-parent", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal then reaches the gateway only, which stops its engines last
    )
    try:
        yield await _announced_url(process)
    finally:
        await _stop(process)


async def _announced_url(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise EngineStartError("a simulated engine has no stdout")
    line = (await process.stdout.readline()).decode().strip()
    if not line.startswith("http"):
        raise EngineStartError(f"a simulated engine did not start (exit code {await process.wait()})")
    return line


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close the engine's stdin, which tells it to stop. Kill it if it does not stop."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
