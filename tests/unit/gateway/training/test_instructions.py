import json

import pytest

from gateway.errors import RowError
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions
from gateway.training.rows import PastRow

TEXTS = {
    "CT": {"default": "From {src} to {dst}.", "task_format": "<src>-><dst>"},
    "MT": {"default": "Translate {src} to {dst}.", "task_format": "<src>-<dst>, ISO 639-1"},
    "CC": {"default": "Comment.", "explain-*": "Explain."},
}


@pytest.mark.parametrize(
    ("app", "task", "expected"),
    [
        ("CT", "go->cpp", "From go to cpp."),
        ("MT", "en-ja", "Translate en to ja."),
        ("CC", "comment-python", "Comment."),
        ("CC", "explain-c", "Explain."),
        ("CC", None, "Comment."),
        ("CT", "odd", "From {src} to {dst}."),
        ("unknown", "x", None),
        (None, None, None),
    ],
)
def test_a_task_gets_the_text_of_its_application(app, task, expected):
    assert Instructions(TEXTS).text(app, task) == expected


def test_a_row_keeps_the_system_prompt_that_it_has():
    rows = [PastRow(app="CC", system="Mine.", output_tokens=1), PastRow(app="CC", output_tokens=1)]
    assert [row.system for row in Instructions(TEXTS).apply(rows)] == ["Mine.", "Comment."]
    assert [row.system for row in NO_INSTRUCTIONS.apply([PastRow(app="CC", output_tokens=1)])] == [None]


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"CC": {"default": 5}})])
def test_a_file_with_another_form_is_an_error(tmp_path, content):
    path = tmp_path / "instructions.json"
    path.write_text(content)
    with pytest.raises(RowError, match=r"instructions\.json"):
        Instructions.load(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RowError, match="No such file"):
        Instructions.load(tmp_path / "instructions.json")
