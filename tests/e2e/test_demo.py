"""The command line as a user runs it, in separate processes."""

import json
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from gateway.storage.postgres_supervisor import url_of_running
from tests.e2e.command import DEADLINE_S, Home, RunningDemo, assert_one_line, bash, processes_with
from tests.polling import wait_until

MODEL = "magnus-sim-8b"
GREETING: Any = [{"role": "user", "content": "Hello"}]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo(shared_home: Home) -> Iterator[RunningDemo]:
    """A demo for tests that do not affect each other."""
    with shared_home.demo() as demo:
        yield demo


def send_chat(demo: RunningDemo, app: str, *, tokens: int = 5, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as sdk:
        return sdk.chat.completions.create(
            model=MODEL, messages=GREETING, max_tokens=tokens, extra_headers={"X-App-Id": app}, **fields
        )


@needs_curl
def test_printed_curl_lines_work(demo: RunningDemo) -> None:
    answer = bash(demo.curl)
    stats = bash(demo.curl_for_stats)

    assert answer["choices"][0]["message"]["content"]
    assert [backend["name"] for backend in stats["backends"]] == ["gpu-0", "gpu-1"]
    assert all(backend["healthy"] for backend in stats["backends"])


def test_openais_client_works_on_the_printed_url(demo: RunningDemo) -> None:
    answer = send_chat(demo, "sdk", tokens=7)

    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 7
    wait_until(lambda: any(app["app"] == "sdk" for app in demo.stats()["apps"]))


def test_second_demo_on_the_same_data_is_refused(demo: RunningDemo, shared_home: Home) -> None:
    refused = shared_home.run("demo", "--port", 0, "--engines", 1)

    assert refused.returncode == 1
    assert all(line.startswith("Starting ") for line in refused.stdout.splitlines())
    assert_one_line(refused.stderr, shared_home.data_dir)
    assert demo.stats()["history"]["available"]


def test_stats_command_shows_the_history_of_the_gateway(demo: RunningDemo, shared_home: Home) -> None:
    answer = send_chat(demo, "shop", tokens=4, user="ann")
    wait_until(lambda: demo.stats()["totals"]["ok"] >= 1)
    printed = shared_home.run("stats", "--url", demo.url, "--app", "shop", "--json")
    table = shared_home.run("stats", "--url", demo.url)

    page = json.loads(printed.stdout)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert [(app["app"], app["requests"], app["output_tokens"]["total"]) for app in page["apps"]] == [
        ("shop", 1, answer.usage.completion_tokens)
    ]
    assert [(user["app"], user["user"]) for user in page["users"]] == [("shop", "ann")]
    assert table.returncode == 0
    assert "shop" in table.stdout
    assert all(len(line) <= 80 for line in table.stdout.splitlines())
    assert "…" not in table.stdout


def test_stats_command_names_the_error(demo: RunningDemo, shared_home: Home) -> None:
    no_time = shared_home.run("stats", "--url", demo.url, "--since", "yesterday")
    nobody = shared_home.run("stats", "--url", "http://127.0.0.1:1")

    assert no_time.returncode == 2
    assert_one_line(no_time.stderr, "since", "yesterday")
    assert nobody.returncode == 1
    assert_one_line(nobody.stderr, "http://127.0.0.1:1")


def test_database_of_a_running_demo_is_up_to_date(demo: RunningDemo, shared_home: Home) -> None:
    upgraded = shared_home.run("db", "upgrade")

    assert (upgraded.returncode, upgraded.stderr.strip()) == (0, "The database is up to date.")
    assert demo.stats()["history"]["available"]


def test_key_is_shown_once_and_stops_working_when_revoked(demo: RunningDemo, shared_home: Home) -> None:
    made = shared_home.run("keys", "create", "--app", "books", "--label", "first", "--json")
    key = json.loads(made.stdout)
    revoked = shared_home.run("keys", "revoke", key["id"])
    again = shared_home.run("keys", "revoke", key["id"])
    listed = shared_home.run("keys", "list", "--app", "books", "--json")
    (entry,) = json.loads(listed.stdout)["keys"]

    assert (made.returncode, revoked.returncode, listed.returncode) == (0, 0, 0)
    assert (entry["id"], entry["app"], entry["label"]) == (key["id"], "books", "first")
    assert key["key"].startswith(entry["prefix"])
    assert key["key"] not in listed.stdout
    assert entry["revoked_at"] is not None
    assert again.returncode == 2
    assert_one_line(again.stderr, key["id"])


def test_serve_accepts_created_keys_and_logs_none(demo: RunningDemo, shared_home: Home, home: Home) -> None:
    key = shared_home.run("keys", "create", "--app", "keyed").stdout.strip()
    backends = json.dumps([{"name": "sim", "kind": "vllm", "url": demo.engine_url}])
    variables = {
        "MAGNUS_AUTH_MODE": "keys",
        "MAGNUS_AUTH_ADMIN_KEY": "an-admin-key-of-some-length",
        "MAGNUS_SERVER_PORT": "0",
        "MAGNUS_DATABASE_URL": str(url_of_running(shared_home.data_dir / "postgres")),
        "MAGNUS_BACKENDS": backends,
        "MAGNUS_LOG_LEVEL": "debug",
    }
    with home.start("serve", announced_by="Magnus answers at ", **variables) as running:
        url = running.said().partition("Magnus answers at ")[2].split()[0]
        client: dict[str, Any] = {"base_url": url, "max_retries": 0, "timeout": DEADLINE_S}
        prompt: Any = [{"role": "user", "content": "a-prompt-that-no-log-may-have"}]
        with openai.OpenAI(api_key="mg-wrong-key", **client) as stranger, pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=MODEL, messages=prompt)
        with openai.OpenAI(api_key=key, **client) as known:
            answer = known.chat.completions.create(model=MODEL, messages=prompt, max_tokens=3)
        code = running.interrupt()
        said = running.said()

    assert answer.usage.completion_tokens == 3
    assert code in {0, 130}
    assert not any(secret in said for secret in (key, "mg-wrong-key", variables["MAGNUS_AUTH_ADMIN_KEY"]))
    assert "a-prompt-that-no-log-may-have" not in said
    wait_until(lambda: any(app["app"] == "keyed" for app in demo.stats()["apps"]))


def family_of(demo: RunningDemo, home: Home, *, engines: int) -> list[psutil.Process]:
    """Return the demo's processes: the gateway, its engines, and its Postgres, which has no parent process left."""
    gateway, *children = demo.running.family()
    postgres = processes_with(f"-D {home.data_dir}")
    assert sum("engine" in child.cmdline() for child in children) == engines
    assert len(postgres) == 1
    return [gateway, *children, *postgres, *postgres[0].children(recursive=True)]


def test_ctrl_c_ends_all_processes_and_loses_no_record(home: Home) -> None:
    with home.demo("--engines", 1) as demo:
        for number, app in enumerate(("one", "two", "two")):
            send_chat(demo, app, tokens=3 + number, user=f"user-{number}")
        wait_until(lambda: demo.stats()["totals"]["ok"] == 3)
        remembered = demo.history()
        family = family_of(demo, home, engines=1)
        code = demo.running.interrupt()
    assert code in {0, 130}
    assert psutil.wait_procs(family, DEADLINE_S)[1] == []
    assert processes_with(str(home.data_dir)) == []

    with home.demo("--engines", 1) as demo:
        assert demo.history() == remembered
        send_chat(demo, "two")
        wait_until(lambda: demo.stats()["totals"]["ok"] == 4)


def test_kill_ends_all_processes_and_leaves_the_data_usable(home: Home) -> None:
    with home.demo("--engines", 2) as demo:
        send_chat(demo, "one", tokens=4)
        wait_until(lambda: demo.stats()["totals"]["ok"] == 1)
        remembered = demo.history()
        family = family_of(demo, home, engines=2)
        demo.running.process.kill()
        demo.running.process.wait(DEADLINE_S)
    assert psutil.wait_procs(family, DEADLINE_S)[1] == []
    wait_until(lambda: processes_with(str(home.data_dir)) == [])

    with home.demo("--engines", 1) as demo:
        assert demo.history() == remembered


def workload_rows() -> list[dict[str, Any]]:
    """Sixty rows of three applications and seven users. The third application has only a system prompt."""
    return [
        {
            "app": ("mail", "code", None)[number % 3],
            "system": "You answer tersely." if number % 3 == 2 else None,
            "user": f"user-{number % 7}",
            "prompt": f"Question {number}: what is {number} times {number}?",
            "output_tokens": 3 + number * 7 % 80,
        }
        for number in range(60)
    ]


def write_workload(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = ({name: value for name, value in row.items() if value is not None} for row in rows)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_replay_answers_every_row_once_and_matches_history(home: Home) -> None:
    rows = workload_rows()
    workload = write_workload(home.folder / "rows.jsonl", rows)
    options = ("--port", 0, "--speed", 20, "--rate", 200, "--replay", workload, "--json")
    done = home.run("demo", *options)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows"], report["answered"], report["failed"], report["wrong_length"]) == (60, 60, 0, 0)
    assert report["history_agrees"] is True
    assert report["users_compared"] == len({(row["app"], row["user"]) for row in rows}) == 21
    tokens: Counter[str | None] = Counter()
    for row in rows:
        tokens[row["app"]] += row["output_tokens"]
    by_app = {app["app"] if app["app"] in tokens else None: app for app in report["apps"]}
    assert {app: entry["output_tokens"] for app, entry in by_app.items()} == tokens
    assert {app: entry["remembered_output_tokens"] for app, entry in by_app.items()} == tokens
    assert {entry["remembered_requests"] for entry in by_app.values()} == {20}
    assert processes_with(str(home.data_dir)) == []


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[server]\nprot = 80\n", ("server", "prot")),
        ('[scheduling]\npolicy = "lottery"\n', ("scheduling.policy",)),
    ],
)
def test_wrong_setting_is_named_in_one_line(home: Home, toml: str, words: tuple[str, ...]) -> None:
    config = home.folder / "magnus.toml"
    config.write_text(toml)
    refused = home.run("demo", "--port", 0)

    assert (refused.returncode, refused.stdout) == (2, "")
    assert_one_line(refused.stderr, *words)


def test_wrong_variable_is_named_in_one_line(home: Home) -> None:
    refused = home.run("serve", MAGNUS_SERVER_PORT="many")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert_one_line(refused.stderr, "MAGNUS_SERVER_PORT", "server.port")


def test_wrong_line_of_a_workload_is_named(home: Home) -> None:
    workload = home.folder / "rows.jsonl"
    workload.write_text('{"prompt": "good", "output_tokens": 3}\n{"prompt": "bad", "output_tokens": "many"}\n')
    refused = home.run("demo", "--port", 0, "--replay", workload, "--json")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert_one_line(refused.stderr, f"{workload}:2", "output_tokens")


def test_missing_workload_is_named(home: Home) -> None:
    refused = home.run("demo", "--port", 0, "--replay", "nowhere.jsonl", "--json")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert_one_line(refused.stderr, "nowhere.jsonl")


def test_json_without_a_replay_is_rejected(home: Home) -> None:
    refused = home.run("demo", "--port", 0, "--json")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert_one_line(refused.stderr, "--json", "--replay")


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


def test_port_in_use_is_named_in_one_line(home: Home, taken_port: str) -> None:
    refused = home.run("demo", "--engines", 1, "--port", taken_port)

    assert refused.returncode == 1
    assert all(line.startswith("Starting ") for line in refused.stdout.splitlines())
    assert_one_line(refused.stderr, taken_port, "in use")
    assert processes_with(str(home.data_dir)) == []


def test_engines_port_in_use_is_named_in_one_line(home: Home, taken_port: str) -> None:
    refused = home.run("engine", "--port", taken_port)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert_one_line(refused.stderr, taken_port, "in use")


def test_unreachable_database_is_a_one_line_error_without_its_password(home: Home) -> None:
    away = "postgresql+asyncpg://somebody:a-password@127.0.0.1:1/nothing"
    refused = home.run("db", "upgrade", MAGNUS_DATABASE_URL=away)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert_one_line(refused.stderr, "database")
    assert "a-password" not in refused.stderr
