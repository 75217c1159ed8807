import json

import msgspec
import pytest
import typer

from bench.results import TABLES_BEGIN, TABLES_END, write_results


class Figures(msgspec.Struct):
    speed: float


def page(tables):
    return f"{TABLES_BEGIN}\n{tables}\n{TABLES_END}\n"


def test_figures_page_and_pictures_are_written_and_named(tmp_path, capsys):
    def draw():
        path = tmp_path / "kept" / "x.png"
        path.write_bytes(b"")
        yield path

    write_results(tmp_path / "kept", "x", Figures(2.5), "# X\n", draw())
    assert json.loads((tmp_path / "kept" / "x.json").read_text()) == {"speed": 2.5}
    assert (tmp_path / "kept" / "x.md").read_text() == "# X\n"
    assert [line.rpartition(".")[2] for line in capsys.readouterr().err.splitlines()] == ["json", "md", "png"]


def test_only_the_tables_of_a_page_with_marked_tables_are_replaced(tmp_path):
    path = tmp_path / "x.md"
    path.write_text(f"# By hand\n\n{page('| old |')}\nMore by hand.\n")
    write_results(tmp_path, "x", Figures(1.0), page("| new |"), [])
    assert path.read_text() == f"# By hand\n\n{page('| new |')}\nMore by hand.\n"


def test_a_page_without_marked_tables_is_replaced(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("old")
    write_results(tmp_path, "x", Figures(1.0), page("| new |"), [])
    assert path.read_text() == page("| new |")


def test_a_folder_that_cannot_be_made_ends_the_process_with_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.Exit):
        write_results(tmp_path / "file", "x", Figures(1.0), "", [])
    assert str(tmp_path / "file") in capsys.readouterr().err
