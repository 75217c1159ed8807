import json
import tracemalloc
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import text

from gateway.errors import RowError
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import ANCHOR, N_FEATURES, features_version, vector_from_bytes
from gateway.training import corpus
from gateway.training.corpus import survey
from gateway.training.importing import ImportRules, import_corpus

NOW = datetime(2025, 3, 10, 12, tzinfo=UTC)
RULES = ImportRules(now=NOW, keep_days=90, store_prompts=False, app_of=lambda system: f"by {system}")


@pytest.fixture
def a_file(tmp_path):
    def write(rows, name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def run_import(engine):
    async def run(path, rules: ImportRules = RULES):
        return await import_corpus(engine, survey([path]), NoEmbedder(), rules, lambda _: None)

    return run


@pytest.fixture
def fetch(engine):
    async def fetch(query: str):
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]

    return fetch


async def test_rows_become_requests_in_their_order_just_before_now(a_file, run_import, fetch):
    rows = [
        {"app": "GC", "model": "llama", "user": "ann", "user_input": f"text {n}", "input_tokens": 5, "output_tokens": n}
        for n in range(1, 6)
    ]
    report = await run_import(a_file(rows))
    assert (report.rows, report.apps, report.users, report.dated_by, report.expired) == (5, 1, 1, "import", 0)
    found = await fetch("SELECT output_tokens, arrived_at, status, route, prompt FROM requests ORDER BY arrived_at")
    assert [row[0] for row in found] == [1, 2, 3, 4, 5]
    assert all(NOW - timedelta(seconds=1) < row[1] < NOW for row in found)
    assert {row[2:] for row in found} == {("ok", "import", None)}


async def test_unix_times_say_when_requests_arrived(a_file, run_import, fetch):
    newest = NOW.timestamp() - 3600
    rows = [
        {"output_tokens": 1, "t": newest - 86_400},
        {"output_tokens": 2, "t": newest},
        {"output_tokens": 3, "t": 1e9},
    ]
    report = await run_import(a_file(rows))
    assert (report.dated_by, report.expired) == ("t", 1)
    found = await fetch(
        "SELECT output_tokens, extract(epoch FROM arrived_at)::float8 FROM requests ORDER BY arrived_at"
    )
    assert found == [(3, 1e9), (1, newest - 86_400), (2, newest)]
    assert await fetch("SELECT count(*) FROM requests_20250309") == [(1,)]


async def test_features_are_as_of_before_the_row(a_file, run_import, fetch):
    await run_import(
        a_file([{"app": "a", "output_tokens": 40, "t": 2.0}, {"app": "a", "output_tokens": 9000, "t": 1.0}])
    )
    found = await fetch("SELECT features, features_version, predicted_tokens FROM requests ORDER BY arrived_at")
    first, second = (vector_from_bytes(row[0]) for row in found)
    assert len(first) == N_FEATURES
    assert second[ANCHOR] > first[ANCHOR]
    assert found[1][2] > found[0][2]
    assert {row[1] for row in found} == {features_version(NoEmbedder())}
    assert np.isfinite(first[ANCHOR])


async def test_applications_without_a_name_get_one_from_their_system_prompt(a_file, run_import, fetch):
    await run_import(a_file([{"system": "Be brief.", "output_tokens": 1}, {"output_tokens": 1}]))
    assert await fetch("SELECT name FROM applications ORDER BY 1") == [("by Be brief.",), ("by None",)]


async def test_prompts_are_kept_only_where_asked_for(a_file, run_import, fetch):
    rules = ImportRules(now=NOW, keep_days=90, store_prompts=True, app_of=str)
    await run_import(a_file([{"app": "a", "prompt": "nul \0 inside", "output_tokens": 1}]), rules)
    assert await fetch("SELECT prompt FROM requests") == [("nul  inside",)]


async def test_a_file_that_goes_bad_meanwhile_imports_nothing(engine, a_file, fetch):
    path = a_file([{"output_tokens": 1}] * 2000)
    corpus = survey([path])
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(RowError, match=":2001: output_tokens: missing"):
        await import_corpus(engine, corpus, NoEmbedder(), RULES, lambda _: None)
    assert await fetch("SELECT count(*) FROM requests") == [(0,)]
    assert await fetch("SELECT count(*) FROM applications") == [(0,)]


async def test_memory_does_not_grow_with_the_file(a_file, run_import, monkeypatch):
    monkeypatch.setattr(corpus, "RUN_BYTES", 2**20)
    path = a_file(
        {"app": "a", "prompt": f"{n} " + "words " * 1500, "output_tokens": n + 1, "t": -n} for n in range(3000)
    )
    await run_import(a_file([{"app": "a", "output_tokens": 1}], "warm.jsonl"))
    tracemalloc.start()
    try:
        await run_import(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 25e6
    assert peak_bytes < 12e6
