"""`magnus backend vllm`: starts vLLM with the options that the gateway needs, and registers it."""

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

app = typer.Typer(help="Start a real engine, or register a running one.", no_args_is_help=True, rich_markup_mode=None)

NOT_INSTALLED = "vLLM is not installed: pip install 'magnus-gateway[vllm]'"
ALL_ADDRESSES = ("0.0.0.0", "::")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command starts and where it registers it.

    Attributes:
        command: the engine's command line.
        environment: the engine's environment variables.
        health_url: the base URL of the engine's `/health`, as seen from this host.
        entry: the backend's settings for the gateway.
        gateway: the gateway's URL; None does not register the engine.
        admin_key: the gateway's admin key.
        ready_timeout_s: longest time until the engine is healthy.
        drain_s: longest time for running requests at the end.
    """

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
def vllm(  # noqa: PLR0913 - one parameter per option
    model: Annotated[str, typer.Option(help="Model name on the Hugging Face hub, or a folder.")],
    host: Annotated[str, typer.Option(help="Address on which the engine listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on which the engine listens.")] = 8000,
    gateway: Annotated[str | None, typer.Option(help="URL of the gateway at which the engine is registered.")] = None,
    admin_key: Annotated[
        str | None, typer.Option(envvar="MAGNUS_AUTH_ADMIN_KEY", help="The gateway's admin key.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Backend name at the gateway. [from host and port]")] = None,
    url: Annotated[
        str | None, typer.Option(help="URL by which the gateway reaches the engine. [from host and port]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="VLLM_API_KEY", help="API key that the engine requires.")
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=0, help="Requests in the engine above which it answers 503; 0 is no limit.")
    ] = 2048,
    ready_timeout_s: Annotated[float, typer.Option(min=1, help="Seconds until the engine must be healthy.")] = 1800.0,
    drain_s: Annotated[float, typer.Option(min=0, help="Seconds that running requests get at the end.")] = 30.0,
    extra: Annotated[list[str] | None, typer.Argument(help="More arguments for vLLM, after --.")] = None,
) -> None:
    """Start vLLM, wait until it is healthy, register it at a gateway, and remove it from the gateway at the end.

    SIGINT or SIGTERM removes the engine from the gateway, lets running requests finish, and stops the engine. A second
    signal stops it at once.
    """
    if gateway is not None and admin_key is None:
        bad_input("--admin-key: required with --gateway (or set MAGNUS_AUTH_ADMIN_KEY)")
    executable = _vllm_executable()
    if executable is None:
        failed(NOT_INSTALLED)
    if _is_in_use(host, port):
        bad_input(f"--port: port {port} is already in use; choose another")
    backend_url = url or _default_url(host, port, gateway)
    entry = {"name": name or _default_name(port), "kind": "vllm", "url": backend_url, "priority": True}
    plan = Plan(
        command=(executable, *vllm_arguments(model, host, port, max_queued), *(extra or ())),
        environment={**os.environ, **({"VLLM_API_KEY": api_key} if api_key else {})},
        health_url=f"http://{_url_host('127.0.0.1' if host in ALL_ADDRESSES else host)}:{port}",
        entry=entry | ({"api_key": api_key} if api_key else {}),
        gateway=gateway,
        admin_key=admin_key,
        ready_timeout_s=ready_timeout_s,
        drain_s=drain_s,
    )
    run(_serve(plan))


def vllm_arguments(model: str, host: str, port: int, max_queued: int) -> tuple[str, ...]:
    """Return vLLM's arguments for use behind the gateway.

    vLLM then orders its queue by the priority of each request, reports cached prompt tokens, caches common prefixes,
    and
    answers 503 when its queue is full.

    >>> vllm_arguments("m", "127.0.0.1", 8000, 0)[:4]
    ('serve', 'm', '--host', '127.0.0.1')
    """
    limit = ("--max-num-queued-reqs", str(max_queued)) if max_queued else ()
    fixed = ("--scheduling-policy", "priority", "--enable-prompt-tokens-details", "--enable-prefix-caching")
    return ("serve", model, "--host", host, "--port", str(port), *fixed, *limit)


async def _serve(plan: Plan) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as stack:
        registration = None
        if plan.gateway is not None and plan.admin_key is not None:
            # A wrong admin key must be reported before the model is loaded, which takes minutes.
            at = registration_at(plan.gateway, plan.admin_key, plan.entry)
            registration = await stack.enter_async_context(at)
        process = await stack.enter_async_context(EngineProcess.started(plan.command, plan.environment))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _request_stop, stop, process)
        try:
            code = await _wait_for_end(plan, process, registration, stop)
        except RegistrationError as error:
            failed(error)
        finally:
            if registration is not None:
                await registration.withdraw()
            if stop.is_set():
                await process.drain(plan.health_url, plan.entry.get("api_key"), plan.drain_s)
    if code:
        raise typer.Exit(code)


async def _wait_for_end(
    plan: Plan, process: EngineProcess, registration: Registration | None, stop: asyncio.Event
) -> int:
    """Start and register the engine, and wait for its end. Return its exit code, or 0 after a signal."""
    ended, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    up = asyncio.create_task(_start(plan, process, registration))
    try:
        await asyncio.wait({ended, stopping, up}, return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            up.result()
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (ended, stopping, up):
            task.cancel()
    if stopping.done() and not stopping.cancelled():
        return 0
    err.print("magnus: vLLM has ended (see its output above)", style="red", markup=False, soft_wrap=True)
    return process.returncode or 1


async def _start(plan: Plan, process: EngineProcess, registration: Registration | None) -> None:
    if not await process.healthy(plan.health_url, plan.ready_timeout_s):
        failed(f"vLLM was not healthy within {plan.ready_timeout_s:g} s (--ready-timeout-s)")
    if registration is not None:
        await registration.add()
        err.print(f"{plan.entry['name']} is registered at {plan.gateway}", markup=False, soft_wrap=True)
    sys.stdout.write(plan.entry["url"] + "\n")
    sys.stdout.flush()


def _request_stop(stop: asyncio.Event, process: EngineProcess) -> None:
    """Stop gracefully at the first signal, and at once at the second."""
    if stop.is_set():
        process.terminate()
    stop.set()


def _vllm_executable() -> str | None:
    """Return the path of `vllm`: beside this Python, which may not be on the shell's path, or else on the path."""
    beside = shutil.which("vllm", path=str(Path(sys.executable).parent))
    return beside or shutil.which("vllm")


def _default_url(host: str, port: int, gateway: str | None) -> str:
    if host in ALL_ADDRESSES:
        host = socket.getfqdn()
    elif host in LOOPBACK and gateway is not None and urlsplit(gateway).hostname not in LOOPBACK:
        bad_input(f"--host: the gateway {gateway} cannot reach {host}; use --host 0.0.0.0 or set --url")
    return f"http://{_url_host(host)}:{port}"


def _default_name(port: int) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"vllm-{socket.gethostname()[:48]}-{port}")


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_in_use(host: str, port: int) -> bool:
    """Return whether another server uses the address. Its `/health` would be mistaken for the engine's."""
    addresses: Sequence[str] = ("127.0.0.1",) if host in ALL_ADDRESSES else (host,)
    with socket.socket(socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((addresses[0], port)) == 0
