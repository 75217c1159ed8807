"""A real engine as a child process."""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

import httpx2

from backends.base import BackendSpec, BackendUnreachableError
from backends.registry import connect

POLL_S = 0.5
SCRAPE_TIMEOUT_S = 5.0
TERMINATE_S = 30.0
"""Time between SIGTERM and SIGKILL."""


@dataclass(slots=True)
class EngineProcess:
    """A running engine. It has a session of its own, so that Ctrl-C does not reach it directly."""

    _process: Process

    @classmethod
    @asynccontextmanager
    async def started(cls, command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Self]:
        """Run the command until the block ends."""
        process = await asyncio.create_subprocess_exec(
            *command, env=dict(environment), stdin=DEVNULL, start_new_session=True
        )
        engine = cls(process)
        try:
            yield engine
        finally:
            await engine._end()

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while the engine runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the process ends. Return its exit code."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def healthy(self, url: str, within_s: float) -> bool:
        """Wait until the engine's `/health` succeeds. Return False if that takes longer than `within_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), httpx2.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as http:
                while True:
                    if await _is_healthy(http, url):
                        return True
                    await asyncio.sleep(POLL_S)
        return False

    async def drain(self, url: str, api_key: str | None, within_s: float) -> None:
        """Wait until the engine has no requests, the time is over, or the engine ends."""
        ended = asyncio.create_task(self.wait())
        idle = asyncio.create_task(_idle(url, api_key))
        await asyncio.wait({ended, idle}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        idle.cancel()

    async def _end(self) -> None:
        if self._process.returncode is not None:
            return
        self.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_S):
                await self._process.wait()
                return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


async def _is_healthy(http: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(f"{url}/health")).is_success
    except httpx2.RequestError:
        return False


async def _idle(url: str, api_key: str | None) -> None:
    """Wait until the engine at `url` has no requests, or does not answer."""
    async with httpx2.AsyncHTTPTransport() as transport:
        backend = connect(BackendSpec("engine", "vllm", url, api_key=api_key), transport, SCRAPE_TIMEOUT_S)
        while True:
            try:
                snapshot = await backend.scrape()
            except BackendUnreachableError:
                return
            if not snapshot.running and not snapshot.waiting:
                return
            await asyncio.sleep(POLL_S)
