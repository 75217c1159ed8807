"""An engine in a process of its own."""

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
LOOK_TIMEOUT_S = 5.0
TERMINATE_S = 30.0
"""How long it may take to end when told to; then it is killed."""


@dataclass(slots=True)
class EngineProcess:
    """A running engine; in a session of its own, so that a Ctrl-C reaches it through us alone."""

    _process: Process

    @classmethod
    @asynccontextmanager
    async def started(cls, command: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Self]:
        """Run it until the block ends."""
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
        """Its exit code, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end."""
        return await self._process.wait()

    def terminate(self) -> None:
        """Tell it to end, now."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def healthy(self, url: str, within_s: float) -> bool:
        """Wait until it answers `/health`; tell whether it did in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), httpx2.AsyncClient(timeout=LOOK_TIMEOUT_S, trust_env=False) as http:
                while True:
                    if await _is_healthy(http, url):
                        return True
                    await asyncio.sleep(POLL_S)
        return False

    async def drain(self, url: str, api_key: str | None, within_s: float) -> None:
        """Let what runs in it come to its end, unless that takes too long or it is told to end meanwhile."""
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
    """Wait until the engine at `url` has nothing to do, or does not answer."""
    async with httpx2.AsyncHTTPTransport() as transport:
        backend = connect(BackendSpec("engine", "vllm", url, api_key=api_key), transport, LOOK_TIMEOUT_S)
        while True:
            try:
                look = await backend.scrape()
            except BackendUnreachableError:
                return
            if not look.running and not look.waiting:
                return
            await asyncio.sleep(POLL_S)
