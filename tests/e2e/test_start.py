"""A start that fails or is stopped: the process ends, and nothing of it stays."""

import signal
import socket
from pathlib import Path

import pytest

from tests.e2e.command import DEADLINE_S, Home, assert_one_line
from tests.polling import wait_until


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_start_that_waits_for_the_database(home, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x?sslmode=disable&connect_timeout=600"
        variables = {"MAGNUS_DATABASE_URL": url, "MAGNUS_SERVER_PORT": "0"}
        with home.start("serve", announced_by="Waiting for application startup", **variables) as running:
            running.process.send_signal(number)
            assert running.process.wait(DEADLINE_S) == 0
            assert "Magnus answers" not in running.said()
            assert "a signal stopped the gateway before it listened" in running.said()


def test_sigterm_while_postgres_starts_stops_postgres_too(home):
    data = home.data_dir / "postgres"
    with home.start("serve", announced_by="no backends are configured", MAGNUS_SERVER_PORT="0") as running:
        wait_until(data.exists)
        family = running.family()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(DEADLINE_S) == 0
        wait_until(lambda: not any(process.is_running() for process in family))


def test_wrong_option_of_the_database_is_an_error_at_the_start(home):
    url = "postgresql://u:sesame@127.0.0.1:1/x?sslmode=bogus"
    ended = home.run("serve", MAGNUS_DATABASE_URL=url, MAGNUS_SERVER_PORT="0")
    assert ended.returncode == 2
    assert_one_line(ended.stderr, "database.url", "sslmode")
    assert "sesame" not in ended.stderr
