"""The gateway as its operator runs it: history imported, a model trained, `magnus serve` in a process of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.reality.client import MODEL
from bench.reality.rows import Row

ADMIN_KEY = "admin-key-of-this-benchmark"
START_S = 60.0
POLL_S = 0.1
MAGNUS = (sys.executable, "-m", "gateway.cli")
_ANNOUNCED = re.compile(r"Magnus answers at (http://\S+)/v1")


class GatewayError(RuntimeError):
    """The gateway did not do what was asked; the message ends in what it said."""


@dataclass(frozen=True, slots=True)
class WarmGateway:
    """A gateway's data directory, filled once; every run gets a copy, so that none knows what another has seen.

    Args:
        folder: where it and its copies are kept.
        engine_url: the one backend.
    """

    folder: Path
    engine_url: str

    @property
    def _data(self) -> Path:
        return self.folder / "warm"

    def warm_up(self, rows: Iterable[Row]) -> None:
        """Import past requests and train on them.

        Raises:
            GatewayError: a command failed.
        """
        past = self.folder / "past.jsonl"
        with past.open("w") as file:
            for row in rows:
                file.write(json.dumps(_past_row(row)) + "\n")
        self._run("history", "import", str(past))
        self._run("train")

    @contextmanager
    def serving(self, policy: str, name: str) -> Iterator[str]:
        """Run the gateway under a policy until the block ends; yield its URL once it knows engine and model.

        Raises:
            GatewayError: it does not start, or is not ready in time.
        """
        data, log = self.folder / name, self.folder / f"{name}.log"
        # With owners and rights: as root, Postgres runs under another user.
        subprocess.run(["cp", "-a", str(self._data), str(data)], check=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*MAGNUS, "serve"], env=self._environ(data, policy), stdout=output, stderr=output, cwd=self.folder
            )
        try:
            yield _ready_url(process, log)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
            shutil.rmtree(data, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [*MAGNUS, *arguments],
            env=self._environ(self._data, None),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise GatewayError(f"magnus {' '.join(arguments)}: {done.stderr.strip()}")

    def _environ(self, data: Path, policy: str | None) -> dict[str, str]:
        """Nobody's settings but these; MAGNUS_CACHE is none, it says where the embedding is."""
        foreign = [name for name in os.environ if name.startswith("MAGNUS_") and name != "MAGNUS_CACHE"]
        kept = {name: value for name, value in os.environ.items() if name not in foreign}
        own = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MAGNUS_SERVER_PORT": "0",
            "MAGNUS_SERVER_SHUTDOWN_S": "1",
            "MAGNUS_DATABASE_DATA_DIR": str(data),
            "MAGNUS_AUTH_ADMIN_KEY": ADMIN_KEY,
            "MAGNUS_LOG_LEVEL": "warning",
            "MAGNUS_BACKENDS": json.dumps([{"name": "gpu-0", "kind": "vllm", "url": self.engine_url}]),
        }
        return kept | own | ({"MAGNUS_SCHEDULING_POLICY": policy} if policy else {})


def _past_row(row: Row) -> dict[str, object]:
    tokens = {"input_tokens": row.prompt_tokens, "output_tokens": row.output_tokens}
    return {"app": row.app, "model": MODEL, "prompt": row.prompt, **tokens}


def _ready_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait until it listens, has seen its engine, and predicts by its trained model."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s:
        said = log.read_text(errors="replace")
        if process.poll() is not None:
            raise GatewayError(f"magnus serve ended: {said.strip()}")
        if (found := _ANNOUNCED.search(said)) and _knows_all(found[1]):
            return found[1]
        time.sleep(POLL_S)
    raise GatewayError(f"magnus serve was not ready after {START_S:g} s: {said.strip()}")


def _knows_all(url: str) -> bool:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    response = httpx2.get(f"{url}/admin/stats", headers=headers, trust_env=False).raise_for_status()
    stats: dict[str, Any] = response.json()
    return stats["predictor"]["source"] == "model" and all(backend["healthy"] for backend in stats["backends"])
