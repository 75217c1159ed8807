"""The number of files and carrier types that a streamed chat request crosses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MAX_FILES, MAX_CARRIERS = 45, 10


@pytest.fixture(scope="module")
def request_path():
    command = [sys.executable, "-m", "bench", "path", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_streamed_chat_request_crosses_few_files(request_path):
    files = request_path["files"]
    assert files[0] == "gateway/api/middleware.py"
    assert "gateway/storage/recorder.py" in files
    assert len(files) <= MAX_FILES, files


def test_a_streamed_chat_request_is_carried_by_few_types(request_path):
    carriers = request_path["carriers"]
    assert {"RequestContext", "GenerationRequest", "Forecast", "Request", "UpstreamRequest"} <= set(carriers)
    assert len(carriers) <= MAX_CARRIERS, carriers


def test_files_that_the_architecture_page_lists_exist():
    listed = re.findall(r"\.\./((?:gateway|backends|bench)/[\w/]+\.py)", ARCHITECTURE.read_text())
    assert listed
    assert [name for name in listed if not (ROOT / name).is_file()] == []
