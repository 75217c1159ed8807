import asyncio
import os
import sys
from contextlib import suppress

import msgspec
import pytest

from gateway.errors import TrainerFailed
from gateway.training import process
from gateway.training.process import TrainerProcess, TrainingOrder
from tests.polling import until

ORDER = TrainingOrder(
    database_url="postgresql+asyncpg://nobody:secret@/x", features_version="1:off", window_rows=1000, min_rows=100
)


def trainer(code: str) -> TrainerProcess:
    return TrainerProcess(ORDER, (sys.executable, "-S", "-c", code))


async def test_the_order_goes_in_and_the_report_comes_out():
    echo = """
import json, sys
order = json.loads(sys.stdin.readline())
print(json.dumps({"outcome": "too_few_rows", "needed": order["min_rows"]}))
"""
    report = await trainer(echo).run()
    assert (report.outcome, report.needed) == ("too_few_rows", 100)


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(1)",
        "import sys; sys.stdin.close(); print('no report')",
        'import sys; sys.stdin.readline(); print(\'{"outcome": "surprise"}\')',
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
async def test_a_trainer_without_a_report_has_failed(code):
    with pytest.raises(TrainerFailed):
        await trainer(code).run()


async def test_a_trainer_that_takes_too_long_is_killed(monkeypatch):
    monkeypatch.setattr(process, "LIMIT_S", 0.2)
    with pytest.raises(TrainerFailed, match="more than"):
        await trainer("import time; time.sleep(60)").run()


async def test_a_cancelled_training_leaves_no_process(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    training = asyncio.create_task(trainer(code).run())
    await until(lambda: pid_file.exists() and pid_file.read_text())
    training.cancel()
    with suppress(asyncio.CancelledError):
        await training
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_the_password_is_on_no_command_line():
    code = "import sys, json; sys.stdin.readline(); print(json.dumps({'outcome': 'busy', 'against': repr(sys.argv)}))"
    report = await trainer(code).run()
    assert "secret" in msgspec.json.encode(ORDER).decode()
    assert "secret" not in (report.against or "")
