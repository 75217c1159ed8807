"""LiteLLM, the proxy to compare with, in an environment of its own."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.overhead.accounting import ProcessAccounts
from bench.overhead.engine import MODEL
from bench.overhead.scenarios import Target
from bench.warm_gateway import StartError, answers, environ, running, wait_until

NAME = "litellm"
VERSION = "1.106.0"
KEY = "sk-litellm"


def install(cache: Path) -> Path:
    """Return the environment that contains LiteLLM's proxy; make it if the cache does not have it (some minutes).

    Raises:
        StartError: the installation failed.
    """
    environment = cache / f"litellm-{VERSION}"
    if (environment / "bin" / "litellm").exists():
        return environment
    python = environment / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", f"litellm[proxy]=={VERSION}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(environment, ignore_errors=True)
            raise StartError(f"LiteLLM cannot be installed: {done.stderr.strip()[-500:]}")
    return environment


@contextmanager
def serving(environment: Path, folder: Path, engine_url: str, core: set[int]) -> Iterator[Target]:
    """Run the proxy with one worker and without a database until the block ends.

    Raises:
        StartError: it does not start.
    """
    model = {"model": f"openai/{MODEL}", "api_base": f"{engine_url}/v1", "api_key": "none"}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    config, log = folder / "litellm.yaml", folder / "litellm.log"
    config.write_bytes(msgspec.json.encode(settings))  # JSON is valid YAML
    port = _free_port()
    command = [str(environment / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--num_workers", "1"]
    url = f"http://127.0.0.1:{port}"
    with running(command, environ({"LITELLM_LOCAL_MODEL_COST_MAP": "True"}), log) as process:
        wait_until(lambda: answers(f"{url}/health/liveliness"), process, log)
        accounts = ProcessAccounts(process.pid)
        accounts.pin(core)
        yield Target(NAME, url, KEY, accounts)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
