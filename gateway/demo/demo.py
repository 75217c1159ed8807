"""`magnus demo`: engines, embedded Postgres and gateway, up in one command."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from backends.simulator.workload import WorkloadRow, write_truth
from gateway.config import BackendSettings, Settings
from gateway.demo.engines import simulated_engines
from gateway.demo.replay import Replay, ReplayReport
from gateway.server.serve import RunningGateway, running

MODEL = "magnus-sim-8b"


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo runs.

    Args:
        settings: of the gateway; its backends are filled in.
        engines: simulated engines.
        speed: of their clocks.
        rows: a workload to replay; empty for none.
        rate: its requests a second where its rows have no times.
        seed: of its arrivals.
    """

    settings: Settings
    engines: int
    speed: float
    rows: list[WorkloadRow]
    rate: float
    seed: int

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[RunningGateway]:
        """Run all of it for as long as the block lasts."""
        with TemporaryDirectory(prefix="magnus-") as folder:
            truth = Path(folder) / "truth.jsonl" if self.rows else None
            if truth is not None:
                write_truth(truth, self.rows)
            async with simulated_engines(self.engines, speed=self.speed, truth=truth) as urls:
                engines = [BackendSettings(name=f"gpu-{i}", kind="vllm", url=url) for i, url in enumerate(urls)]
                async with running(msgspec.structs.replace(self.settings, backends=engines)) as gateway:
                    yield gateway

    async def replay(self, gateway: RunningGateway, console: Console) -> ReplayReport:
        """Send the rows, with a progress bar on the console."""
        columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        since = datetime.now(UTC).isoformat()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("replay", total=len(self.rows))
            replay = Replay(
                url=gateway.url,
                admin_key=gateway.settings.auth.admin_key or "",
                model=MODEL,
                rate=self.rate,
                on_answer=lambda: progress.advance(task),
                seed=self.seed,
            )
            return await replay.run(self.rows, since)


def banner(gateway: RunningGateway) -> str:
    """Say where the gateway is and what to do with it."""
    key = " -H 'Authorization: Bearer KEY'" if gateway.settings.auth.mode == "keys" else ""
    curl = (
        f"curl {gateway.url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f'    -d \'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    settings = gateway.settings
    stats = f"curl {gateway.url}/admin/stats -H 'Authorization: Bearer {settings.auth.admin_key}'"
    hint = "KEY is what `magnus keys create --app NAME` makes.\n" if key else ""
    engines = ", ".join(f"{backend.name} {backend.url}" for backend in settings.backends)
    return (
        f"Magnus answers at {gateway.url}/v1 (model {MODEL}; simulated engines: {engines})\n\n"
        f"  {curl}\n\n"
        f"  {stats}\n\n"
        f"Admin key: {settings.auth.admin_key}\n"
        f"{hint}"
        "Ctrl-C stops everything."
    )
