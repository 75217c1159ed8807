"""`magnus serve`: the gateway."""

from collections.abc import Callable

from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, err, failed, read_settings, run
from gateway.config import Settings, load
from gateway.errors import EmbeddedPostgresError, JournalInUse, ListenError, StartFailed, StartInterrupted
from gateway.telemetry import logs

START_ERRORS = (ListenError, EmbeddedPostgresError, JournalInUse, StartFailed)
"""The reasons why a gateway does not start, each with a message for the operator."""


def serve(config: ConfigOption = None) -> None:
    """Run the gateway until SIGINT or SIGTERM."""
    config = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    settings = read_settings(config)
    logs.configure(settings.log.level, settings.log.format)
    try:
        run(_serve(settings, lambda: load(config)))
    except StartInterrupted as interruption:
        err.print(f"magnus: {interruption}")
    except START_ERRORS as error:
        failed(error)


async def _serve(settings: Settings, read: Callable[[], Settings]) -> None:
    from gateway.server.serve import running  # takes seconds to import, and wrong settings end the command before

    if not settings.backends:
        err.print("magnus: no backends are configured, so every request will get status 503", style="yellow")
    async with running(settings, read) as gateway:
        err.print(f"Magnus answers at {gateway.url}/v1", markup=False, soft_wrap=True)
        await gateway.stopped()
