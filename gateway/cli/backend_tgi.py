"""`magnus backend tgi`: registers a running TGI."""

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
    url: Annotated[str, typer.Option(help="URL of the running TGI, for this command and for the gateway.")],
    gateway: Annotated[str, typer.Option(help="URL of the gateway at which the engine is registered.")],
    admin_key: Annotated[str, typer.Option(envvar="MAGNUS_AUTH_ADMIN_KEY", help="The gateway's admin key.")],
    name: Annotated[str | None, typer.Option(help="Backend name at the gateway. [from the URL]")] = None,
    api_key: Annotated[str | None, typer.Option(help="API key that the engine requires.")] = None,
    ready_timeout_s: Annotated[
        float, typer.Option(min=1, help="Seconds until the engine must generate text.")
    ] = 1800.0,
) -> None:
    """Wait until a running TGI generates text, and register it at a gateway until this command ends."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        bad_input(f"--url: {url} is not valid; it must start with http:// or https://")
    entry = {"name": name or f"tgi-{parts.netloc.rpartition('@')[2].replace(':', '-')}", "kind": "tgi", "url": url}
    run(_serve(entry | ({"api_key": api_key} if api_key else {}), gateway, admin_key, ready_timeout_s))


async def _serve(entry: dict[str, Any], gateway: str, admin_key: str, ready_timeout_s: float) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with registration_at(gateway, admin_key, entry) as registration:
        stopping, up = asyncio.create_task(stop.wait()), asyncio.create_task(_enter(registration, ready_timeout_s))
        try:
            await asyncio.wait({stopping, up}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                up.result()
                await stopping
        except RegistrationError as error:
            failed(error)
        finally:
            stopping.cancel()
            up.cancel()


async def _enter(registration: Registration, ready_timeout_s: float) -> None:
    entry = registration.fields
    with suppress(TimeoutError):
        async with asyncio.timeout(ready_timeout_s):
            while True:
                if await _generates(entry["url"], entry.get("api_key")):
                    break
                await asyncio.sleep(RETRY_S)
            await registration.add()
            err.print(f"{entry['name']} is registered", markup=False, soft_wrap=True)
            sys.stdout.write(entry["url"] + "\n")
            sys.stdout.flush()
            return
    failed(f"{entry['url']} did not generate text within {ready_timeout_s:g} s (--ready-timeout-s)")


async def _generates(url: str, api_key: str | None) -> bool:
    """Return whether the engine generates a token. Its `/health` answers even if a shard has failed."""
    try:
        from httpx import HTTPError  # the base class of the client's errors
        from huggingface_hub import AsyncInferenceClient
    except ImportError:
        failed(NOT_INSTALLED)
    async with AsyncInferenceClient(model=url, token=api_key or "", timeout=TRIAL_TIMEOUT_S) as client:
        try:
            await client.text_generation("Hello", max_new_tokens=1)
        except (HTTPError, OSError):
            return False
    return True
