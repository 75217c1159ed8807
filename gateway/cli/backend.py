"""`magnus backend`: real engines, started the way the gateway wants them."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.cli.backend_tgi import tgi
from gateway.cli.engine_process import EngineProcess
from gateway.cli.options import bad_input, err, failed, run
from gateway.cli.registration import Registration, registration_at
from gateway.errors import RegistrationError

app = typer.Typer(help="Start a real engine, or register one that runs.", no_args_is_help=True, rich_markup_mode=None)

NOT_INSTALLED = "vLLM is not installed: pip install 'magnus-gateway[vllm]'"
EVERYWHERE = ("0.0.0.0", "::")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is started, where it answers, and to which gateway it belongs."""

    command: tuple[str, ...]
    environment: dict[str, str]
    health_url: str
    entry: dict[str, Any]
    gateway: str | None
    admin_key: str | None
    ready_timeout_s: float
    drain_s: float


app.command("tgi")(tgi)


@app.command("vllm")
def vllm(  # noqa: PLR0913 - one parameter an option
    model: Annotated[str, typer.Option(help="The model: a name on the hub, or a folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    gateway: Annotated[str | None, typer.Option(help="URL of the gateway to register at.")] = None,
    admin_key: Annotated[str | None, typer.Option(envvar="MAGNUS_AUTH_ADMIN_KEY", help="The gateway's.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name there; from host and port if not given.")] = None,
    url: Annotated[str | None, typer.Option(help="URL for the gateway; host and port if not given.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="VLLM_API_KEY", help="What the engine asks for.")] = None,
    max_queued: Annotated[int, typer.Option(min=0, help="Requests in it beyond which it answers 503; 0: any.")] = 2048,
    ready_timeout_s: Annotated[float, typer.Option(min=1, help="How long it may take to load.")] = 1800.0,
    drain_s: Annotated[float, typer.Option(min=0, help="How long what runs may take at the end.")] = 30.0,
    extra: Annotated[list[str] | None, typer.Argument(help="Further arguments for vLLM, behind a --.")] = None,
) -> None:
    """Start vLLM, wait until it is healthy, register it at a gateway, and take it out again at the end."""
    if gateway is not None and admin_key is None:
        bad_input("--admin-key: needed to register at a gateway (or MAGNUS_AUTH_ADMIN_KEY)")
    executable = _vllm_executable()
    if executable is None:
        failed(NOT_INSTALLED)
    if _answers(host, port):
        bad_input(f"--port: {port} is in use")
    reached = url or _own_url(host, port, gateway)
    entry = {"name": name or _own_name(port), "kind": "vllm", "url": reached, "priority": True}
    plan = Plan(
        command=(executable, *vllm_arguments(model, host, port, max_queued), *(extra or ())),
        environment={**os.environ, **({"VLLM_API_KEY": api_key} if api_key else {})},
        health_url=f"http://{_bracketed('127.0.0.1' if host in EVERYWHERE else host)}:{port}",
        entry=entry | ({"api_key": api_key} if api_key else {}),
        gateway=gateway,
        admin_key=admin_key,
        ready_timeout_s=ready_timeout_s,
        drain_s=drain_s,
    )
    run(_serve(plan))


def vllm_arguments(model: str, host: str, port: int, max_queued: int) -> tuple[str, ...]:
    """Return the arguments of `vllm` that make it what the gateway wants.

    It orders its queue by the priority that a request carries, tells how much of a prompt its cache had, keeps what
    prompts have in common, and says that it is full before its own queue grows long.

    >>> vllm_arguments("m", "127.0.0.1", 8000, 0)[:4]
    ('serve', 'm', '--host', '127.0.0.1')
    """
    bounded = ("--max-num-queued-reqs", str(max_queued)) if max_queued else ()
    wanted = ("--scheduling-policy", "priority", "--enable-prompt-tokens-details", "--enable-prefix-caching")
    return ("serve", model, "--host", host, "--port", str(port), *wanted, *bounded)


async def _serve(plan: Plan) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as stack:
        registration = None
        if plan.gateway is not None and plan.admin_key is not None:
            # Before minutes are spent on loading a model.
            at = registration_at(plan.gateway, plan.admin_key, plan.entry)
            registration = await stack.enter_async_context(at)
        process = await stack.enter_async_context(EngineProcess.started(plan.command, plan.environment))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _ask_to_stop, stop, process)
        try:
            code = await _until_over(plan, process, registration, stop)
        except RegistrationError as error:
            failed(error)
        finally:
            if registration is not None:
                await registration.withdraw()
            if stop.is_set():
                await process.drain(plan.health_url, plan.entry.get("api_key"), plan.drain_s)
    if code:
        raise typer.Exit(code)


async def _until_over(
    plan: Plan, process: EngineProcess, registration: Registration | None, stop: asyncio.Event
) -> int:
    """Bring the engine up and see it through; return its exit code, 0 where it was told to stop."""
    ended, told = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    up = asyncio.create_task(_bring_up(plan, process, registration))
    try:
        await asyncio.wait({ended, told, up}, return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            up.result()
            await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ended, told, up):
            task.cancel()
    if told.done() and not told.cancelled():
        return 0
    err.print("magnus: vLLM has ended", style="red", markup=False, soft_wrap=True)
    return process.returncode or 1


async def _bring_up(plan: Plan, process: EngineProcess, registration: Registration | None) -> None:
    if not await process.healthy(plan.health_url, plan.ready_timeout_s):
        failed(f"vLLM was not healthy within {plan.ready_timeout_s:g} s")
    if registration is not None:
        await registration.enter()
        err.print(f"{plan.entry['name']} is registered at {plan.gateway}", markup=False, soft_wrap=True)
    sys.stdout.write(plan.entry["url"] + "\n")
    sys.stdout.flush()


def _ask_to_stop(stop: asyncio.Event, process: EngineProcess) -> None:
    """Stop in order when asked once, and at once when asked again."""
    if stop.is_set():
        process.terminate()
    stop.set()


def _vllm_executable() -> str | None:
    """Find `vllm` beside this Python, whose environment may not be the shell's, or else on the path."""
    beside = shutil.which("vllm", path=str(Path(sys.executable).parent))
    return beside or shutil.which("vllm")


def _own_url(host: str, port: int, gateway: str | None) -> str:
    if host in EVERYWHERE:
        host = socket.getfqdn()
    elif host in LOOPBACK and gateway is not None and urlsplit(gateway).hostname not in LOOPBACK:
        bad_input(f"--host: {gateway} cannot reach {host}: give --host 0.0.0.0, or --url")
    return f"http://{_bracketed(host)}:{port}"


def _own_name(port: int) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"vllm-{socket.gethostname()[:48]}-{port}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _answers(host: str, port: int) -> bool:
    """Tell whether somebody listens there already: their health would be taken for the engine's."""
    where: Sequence[str] = ("127.0.0.1",) if host in EVERYWHERE else (host,)
    with socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((where[0], port)) == 0
