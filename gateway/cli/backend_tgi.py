"""`magnus backend tgi`."""

import asyncio
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway.cli.options import bad_input, err, failed, run
from gateway.cli.registration import Registration, registration_at
from gateway.errors import RegistrationError

NOT_INSTALLED = "huggingface_hub is not installed: pip install 'magnus-gateway[tgi]'"
RETRY_S = 1.0
TRIAL_TIMEOUT_S = 60.0


def tgi(
    url: Annotated[str, typer.Option(help="Where the TGI answers, for us and for the gateway.")],
    gateway: Annotated[str, typer.Option(help="URL of the gateway to register at.")],
    admin_key: Annotated[str, typer.Option(envvar="MAGNUS_AUTH_ADMIN_KEY", help="The gateway's.")],
    name: Annotated[str | None, typer.Option(help="Its name there; from the URL if not given.")] = None,
    api_key: Annotated[str | None, typer.Option(help="What the engine asks for.")] = None,
    ready_timeout_s: Annotated[float, typer.Option(min=1, help="How long it may take to load.")] = 1800.0,
) -> None:
    """Wait until a TGI generates, and register it at a gateway for as long as this command runs."""
    where = urlsplit(url)
    if where.scheme not in ("http", "https") or not where.hostname:
        bad_input(f"--url: {url} is no URL that begins in http:// or https://")
    entry = {"name": name or f"tgi-{where.netloc.rpartition('@')[2].replace(':', '-')}", "kind": "tgi", "url": url}
    run(_serve(entry | ({"api_key": api_key} if api_key else {}), gateway, admin_key, ready_timeout_s))


async def _serve(entry: dict[str, Any], gateway: str, admin_key: str, ready_timeout_s: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with registration_at(gateway, admin_key, entry) as registration:
        told, up = asyncio.create_task(stop.wait()), asyncio.create_task(_enter(registration, ready_timeout_s))
        try:
            await asyncio.wait({told, up}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                await told
        except RegistrationError as error:
            failed(error)
        finally:
            told.cancel()
            up.cancel()


async def _enter(registration: Registration, ready_timeout_s: float) -> None:
    entry = registration.fields
    with suppress(TimeoutError):
        async with asyncio.timeout(ready_timeout_s):
            while True:
                if await _generates(entry["url"], entry.get("api_key")):
                    break
                await asyncio.sleep(RETRY_S)
            await registration.enter()
            err.print(f"{entry['name']} is registered", markup=False, soft_wrap=True)
            sys.stdout.write(entry["url"] + "\n")
            sys.stdout.flush()
            return
    failed(f"{entry['url']} did not generate within {ready_timeout_s:g} s")


async def _generates(url: str, api_key: str | None) -> bool:
    """Tell whether the engine makes a token: its health says less, which answers while a shard is lost."""
    try:
        from httpx import HTTPError  # of which the hub's client makes its errors
        from huggingface_hub import AsyncInferenceClient
    except ImportError:
        failed(NOT_INSTALLED)
    async with AsyncInferenceClient(model=url, token=api_key or "", timeout=TRIAL_TIMEOUT_S) as client:
        try:
            await client.text_generation("Hello", max_new_tokens=1)
        except (HTTPError, OSError):
            return False
    return True
