"""Simulated engines, each a process of its own that ends when we do, however we end."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from gateway.errors import EngineStartError

STOP_S = 5.0

KV_TOKENS = 60_000
"""KV memory of each engine: about what an 8B model in fp16 leaves free on a GPU with 24 GB."""


@asynccontextmanager
async def simulated_engines(count: int, *, speed: float, truth: Path | None) -> AsyncGenerator[list[str]]:
    """Run `count` engines for as long as the block lasts; yield their base URLs.

    Args:
        count: how many.
        speed: virtual seconds a second.
        truth: file with the answers' lengths; without one they are drawn.
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
        start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends its engines when it is done
    )
    try:
        yield await _announced_url(process)
    finally:
        await _stop(process)


async def _announced_url(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise EngineStartError("no pipe to the engine")
    line = (await process.stdout.readline()).decode().strip()
    if not line.startswith("http"):
        raise EngineStartError(f"a simulated engine did not start (exit code {await process.wait()})")
    return line


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Close the engine's stdin, which is how it learns that we are done; kill it if it does not listen."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
