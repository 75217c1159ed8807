import logging

import msgspec
import pytest

from gateway.config import Settings
from gateway.errors import SettingsError
from gateway.server.reload import LIVE, Reload, needing_restart


def settings(**sections):
    return msgspec.convert(sections, Settings)


class Reloaded:
    """A reload of the settings, and its results."""

    def __init__(self, started, *readings):
        self.readings = list(readings)
        self.applied = []
        self.results = []
        self.reload = Reload(started, self.read, self.apply, self.results.append)

    def read(self):
        reading = self.readings.pop(0)
        if isinstance(reading, Exception):
            raise reading
        return reading

    async def apply(self, read):
        if read.server.port == 666:
            raise ValueError("not that one")
        self.applied.append(read)


async def test_reloaded_settings_are_applied():
    new = settings(scheduling={"max_queue": 7})
    reloaded = Reloaded(Settings(), new)
    assert await reloaded.reload.once()
    assert (reloaded.applied, reloaded.results) == ([new], ["applied"])


async def test_wrong_settings_are_rejected_and_the_field_is_logged(caplog):
    error = SettingsError("magnus.toml: server.port: not a port", "server.port")
    reloaded = Reloaded(Settings(), error, settings())
    assert not await reloaded.reload.once()
    assert (reloaded.applied, reloaded.results) == ([], ["refused"])
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.field == "server.port"
    assert "server.port: not a port" in record.getMessage()
    assert await reloaded.reload.once()


async def test_settings_that_cannot_be_applied_are_rejected():
    reloaded = Reloaded(Settings(), settings(server={"port": 666}))
    assert not await reloaded.reload.once()
    assert reloaded.results == ["refused"]


async def test_settings_that_need_a_restart_are_named_until_the_restart(caplog):
    new = settings(server={"port": 1}, log={"level": "debug"})
    reloaded = Reloaded(Settings(), new, new)
    for _ in range(2):
        caplog.clear()
        await reloaded.reload.once()
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "These settings changed and need a restart: server.port"
        ]


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({}, []),
        ({"auth": {"mode": "keys"}, "server": {"host": "0.0.0.0"}}, ["server.host", "auth.mode"]),
        ({"database": {"url": "postgresql+asyncpg://u:p@h/d"}}, ["database.url"]),
        ({"scheduling": {"queue_timeout_s": 7, "priorities": {"a": 1}}}, ["scheduling.queue_timeout_s"]),
        ({"scheduling": {"policy": "sjf", "alpha": 0.5}}, []),
        ({"models": {"aliases": {"a": "b"}}, "log": {"level": "error"}}, []),
        ({"backends": [{"name": "a", "kind": "vllm", "url": "http://a"}]}, []),
    ],
)
def test_restart_is_needed_for_settings_that_cannot_change_at_run_time(sections, named):
    assert needing_restart(Settings(), settings(**sections)) == named


def test_every_name_in_the_list_of_changeable_settings_is_a_setting():
    known = {f"{section}.{key}" for section in ("models", "scheduling", "log") for key in fields_of(section)}
    assert known | {"backends"} >= LIVE


def fields_of(section):
    return getattr(Settings(), section).__struct_fields__
