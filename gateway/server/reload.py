"""The settings read again while the gateway runs: taken over whole, or refused whole."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.config import Settings
from gateway.errors import SettingsError

LIVE = {
    "backends",
    "models.aliases",
    "models.defaults",
    "scheduling.max_queue",
    "scheduling.max_queue_tokens",
    "scheduling.priorities",
    "log.level",
}
"""Settings that change at run time; all others need a restart."""

_log = logging.getLogger(__name__)


class Reload:
    """Reads the settings again.

    Args:
        started: what the gateway was started with, as it was read.
        read: reads them again.
        apply: takes over those that can change; raises ValueError, before anything has changed, where it cannot.
        on_reload: told `applied` or `refused`.
    """

    def __init__(
        self,
        started: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Settings], Awaitable[None]],
        on_reload: Callable[[str], None],
    ) -> None:
        self._started = started
        self._read = read
        self._apply = apply
        self._on_reload = on_reload

    async def run(self, asked: asyncio.Event) -> None:
        """Reload whenever it is asked for; ends by being cancelled."""
        while True:
            await asked.wait()
            asked.clear()
            await self.once()

    async def once(self) -> bool:
        """Reload. Returns whether the settings were taken."""
        try:
            settings = await asyncio.to_thread(self._read)
            await self._apply(settings)
        except ValueError as error:  # SettingsError among them
            field = error.field if isinstance(error, SettingsError) else None
            _log.error("The settings are refused and the old ones stay: %s", error, extra={"field": field})
            self._on_reload("refused")
            return False
        _log.info("The settings were read again")
        if fixed := needing_restart(self._started, settings):
            _log.warning("A restart is needed for what has changed of %s", ", ".join(fixed))
        self._on_reload("applied")
        return True


def needing_restart(started: Settings, settings: Settings) -> list[str]:
    """Name the settings that differ and cannot change at run time."""
    return [
        f"{section}.{key}"
        for section in Settings.__struct_fields__
        if section != "backends"
        for key in getattr(started, section).__struct_fields__
        if f"{section}.{key}" not in LIVE
        and getattr(getattr(started, section), key) != getattr(getattr(settings, section), key)
    ]
