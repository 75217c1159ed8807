"""Reads the settings again while the gateway runs, and applies either all of them or none."""

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
    "scheduling.policy",
    "scheduling.alpha",
    "scheduling.priorities",
    "log.level",
}
"""Settings that can change while the gateway runs. All others need a restart."""

_log = logging.getLogger(__name__)


class Reload:
    """Reads and applies the settings on request.

    Args:
        started: the settings that the gateway was started with.
        read: reads the settings again.
        apply: applies those in `LIVE`. Raises ValueError, before anything has changed, if it cannot.
        on_reload: called with `applied` or `refused`.
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

    async def run(self, requested: asyncio.Event) -> None:
        """Reload whenever the event is set, until cancelled."""
        while True:
            await requested.wait()
            requested.clear()
            await self.once()

    async def once(self) -> bool:
        """Reload once. Return whether the settings were applied."""
        try:
            settings = await asyncio.to_thread(self._read)
            await self._apply(settings)
        except ValueError as error:  # SettingsError is one
            field = error.field if isinstance(error, SettingsError) else None
            _log.error("The new settings are refused and the old ones stay: %s", error, extra={"field": field})
            self._on_reload("refused")
            return False
        _log.info("The settings were read again")
        if names := needing_restart(self._started, settings):
            _log.warning("These settings changed and need a restart: %s", ", ".join(names))
        self._on_reload("applied")
        return True


def needing_restart(started: Settings, settings: Settings) -> list[str]:
    """Return the names of the settings that differ and need a restart."""
    return [
        f"{section}.{key}"
        for section in Settings.__struct_fields__
        if section != "backends"
        for key in getattr(started, section).__struct_fields__
        if f"{section}.{key}" not in LIVE
        and getattr(getattr(started, section), key) != getattr(getattr(settings, section), key)
    ]
