"""`magnus demo`: starts simulated engines, an embedded Postgres and the gateway with one command."""

from collections.abc import AsyncGenerator, Callable
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

    Attributes:
        settings: settings of the gateway, except its backends.
        engines: number of simulated engines.
        speed: simulated seconds per second of real time.
        rows: a workload to replay; empty for none.
        rate: requests per second, if the rows have no times.
        seed: seed of the random arrival times.
    """

    settings: Settings
    engines: int
    speed: float
    rows: list[WorkloadRow]
    rate: float
    seed: int

    @asynccontextmanager
    async def running(self, on_step: Callable[[str], None]) -> AsyncGenerator[RunningGateway]:
        """Run all parts until the block ends. Call `on_step` with one line before each part starts."""
        with TemporaryDirectory(prefix="magnus-") as folder:
            truth = Path(folder) / "truth.jsonl" if self.rows else None
            if truth is not None:
                write_truth(truth, self.rows)
            on_step(f"Starting {self.engines} simulated engine{'s' if self.engines > 1 else ''}")
            async with simulated_engines(self.engines, speed=self.speed, truth=truth) as urls:
                engines = [BackendSettings(name=f"gpu-{i}", kind="vllm", url=url) for i, url in enumerate(urls)]
                settings = msgspec.structs.replace(self.settings, backends=engines)
                async with running(settings, on_step=on_step) as gateway:
                    yield gateway

    async def replay(self, gateway: RunningGateway, console: Console) -> ReplayReport:
        """Send the rows and show a progress bar on the console."""
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
    """Return the text that shows where the gateway is and how to use it."""
    settings = gateway.settings
    key = " -H 'Authorization: Bearer KEY'" if settings.auth.mode == "keys" else ""
    curl = (
        f"curl {gateway.url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\\n"
        f'    -d \'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    stats = f"curl {gateway.url}/admin/stats -H 'Authorization: Bearer {settings.auth.admin_key}'"
    hint = "Create a KEY with `magnus keys create --app NAME`.\n" if key else ""
    engines = ", ".join(f"{backend.name} {backend.url}" for backend in settings.backends)
    return (
        f"Magnus answers at {gateway.url}/v1 (model {MODEL}; simulated engines: {engines})\n\n"
        f"  {curl}\n\n"
        f"  {stats}\n\n"
        f"Admin key: {settings.auth.admin_key}\n"
        f"{hint}"
        "Ctrl-C stops everything."
    )
