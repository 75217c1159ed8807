import asyncio
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from gateway.errors import EmbeddedPostgresError
from gateway.storage.database import create_database_engine
from gateway.storage.embedded import EmbeddedPostgres
from gateway.storage.postgres_supervisor import url_of_running

OWNER = """
import asyncio, sys
from pathlib import Path
from gateway.storage.embedded import EmbeddedPostgres

async def own():
    print(await EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
    await asyncio.Event().wait()

asyncio.run(own())
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pg")


def start_owner(home: Path) -> subprocess.Popen[str]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(home)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline().startswith("postgresql+asyncpg://")
    return owner


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def supervisor_of(pid: int, home: Path) -> int:
    """Return the pid of the supervisor that the process `pid` has started for `home`."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    [supervisor] = [child for child in children if str(home).encode() in Path(f"/proc/{child}/cmdline").read_bytes()]
    return supervisor


def server_runs(home: Path) -> bool:
    """Return whether any process of the server runs: each of them holds this lock."""
    with (home / "server.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait_for_end(home: Path, deadline_s: float = 20) -> None:
    deadline = time.monotonic() + deadline_s
    while server_runs(home):
        assert time.monotonic() < deadline, "the server is still running"
        time.sleep(0.02)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def ask(url: str, query: str) -> object:
    engine = create_database_engine(url)
    async with engine.begin() as connection:
        result = await connection.execute(text(query))
        answer = result.scalar() if result.returns_rows else None
    await engine.dispose()
    return answer


async def test_restart_keeps_data(home: Path):
    async with EmbeddedPostgres(home) as url:
        await ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert server_runs(home)
    assert not server_runs(home)
    async with EmbeddedPostgres(home) as url:
        assert await ask(url, "SELECT answer FROM kept") == 42


async def test_stop_closes_connections_of_clients(home: Path):
    postgres = EmbeddedPostgres(home)
    engine = create_database_engine(await postgres.start())
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        await postgres.stop()
        assert not server_runs(home)
        await connection.invalidate()
    await engine.dispose()


async def test_second_owner_is_refused(home: Path):
    async with EmbeddedPostgres(home) as url:
        with pytest.raises(EmbeddedPostgresError, match=rf"{home} is in use by process {os.getpid()}"):
            await EmbeddedPostgres(home).start()
        assert await ask(url, "SELECT 1") == 1


async def test_other_users_and_the_network_cannot_connect(home: Path):
    async with EmbeddedPostgres(home) as url:
        assert await ask(url, "SHOW listen_addresses") == ""
        assert mode(home) == 0o700
        assert f"host={home}&" in url


async def test_socket_is_in_a_temporary_directory_when_the_path_is_too_long(tmp_path: Path):
    home = tmp_path / ("long" * 30)
    async with EmbeddedPostgres(home) as url:
        assert str(home) not in url
        assert await ask(url, "SELECT 1") == 1


def test_server_stops_when_its_owner_is_killed(home: Path):
    owner = start_owner(home)
    assert server_runs(home)
    kill(owner)
    wait_for_end(home)


def test_signals_to_the_supervisor_do_not_stop_the_server(home: Path):
    owner = start_owner(home)
    supervisor = supervisor_of(owner.pid, home)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(supervisor, ignored)
    assert os.getsid(supervisor) != os.getsid(owner.pid)
    assert server_runs(home)
    kill(owner)
    wait_for_end(home)


def test_next_owner_replaces_a_server_whose_supervisor_was_killed(home: Path):
    owner = start_owner(home)
    os.kill(supervisor_of(owner.pid, home), signal.SIGKILL)
    kill(owner)
    assert server_runs(home)
    asyncio.run(_start_and_stop(home))
    assert not server_runs(home)


async def test_stop_works_when_the_supervisor_was_killed(home: Path):
    async with EmbeddedPostgres(home):
        os.kill(supervisor_of(os.getpid(), home), signal.SIGKILL)
    assert not server_runs(home)


async def test_other_processes_find_the_running_server(home: Path):
    assert url_of_running(home) is None
    async with EmbeddedPostgres(home) as url:
        assert url_of_running(home) == url
    assert url_of_running(home) is None


def test_stale_pid_file_with_the_pid_of_a_running_process_is_ignored(home: Path):
    (home / "data/postmaster.pid").write_text(f"{os.getppid()}\n{home}/data\n1\n5432\n{home}\n\n1 1\nready\n")
    asyncio.run(_start_and_stop(home))


def test_incomplete_cluster_is_created_again(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("half")
    (home / "data.unfinished").mkdir()
    (home / "data.unfinished/PG_VERSION").write_text("18\n")
    asyncio.run(_start_and_stop(home))


async def test_failed_start_reports_the_reason(tmp_path: Path):
    (tmp_path / "data").mkdir()
    with pytest.raises(EmbeddedPostgresError, match="not a database cluster directory"):
        await EmbeddedPostgres(tmp_path).start()


async def _start_and_stop(home: Path) -> None:
    async with EmbeddedPostgres(home) as url:
        assert await ask(url, "SELECT 1") == 1
