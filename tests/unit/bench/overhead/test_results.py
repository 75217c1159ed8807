import io

import msgspec
from rich.console import Console

from bench.overhead.results import OverheadResults, Row, markdown, rich_table


def results(*rows, litellm=None):
    return OverheadResults(
        quick=False, python="3.11.7", machine="2 cores", own_core=True, litellm=litellm, rows=list(rows)
    )


def test_a_figure_on_its_target_has_reached_it():
    assert Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0).reached


def test_the_peers_figure_is_not_held_to_the_target():
    assert Row("CPU", "ms", {"magnus": 0.8, "litellm": 18.0}, 0.9, 1.0).reached
    assert Row("CPU", "ms", {"magnus": 1.0, "litellm": 0.1}, 0.9, 1.0).reached is False


def test_a_figure_without_a_target_neither_reaches_nor_misses():
    assert Row("CPU", "ms", {"magnus": 0.9}, None, 1.0).reached is None


def test_page_has_a_line_a_figure_and_a_column_a_proxy():
    page = markdown(results(Row("CPU", "ms", {"magnus": 0.912, "litellm": 18.7}, 0.9, 1.5), litellm="1.0"))
    assert "| | | magnus | litellm | target | load |" in page
    assert "| CPU | ms | 0.912 | 18.7 | ≤ 0.9 | 1.5 |" in page


def test_a_peer_that_has_no_figure_leaves_its_cell_empty():
    page = markdown(results(Row("memory", "MiB", {"magnus": 182.0}, 250.0, 1.5), litellm="1.0"))
    assert "| memory | MiB | 182 |  | ≤ 250 | 1.5 |" in page


def test_without_a_peer_there_is_no_column_for_it():
    assert "litellm" not in markdown(results(Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0)))


def test_terminal_table_shows_every_figure():
    console = Console(file=io.StringIO(), width=120)
    console.print(rich_table(results(Row("CPU, JSON", "ms", {"magnus": 0.912}, 0.9, 1.5))))
    assert "CPU, JSON" in console.file.getvalue()
    assert "0.912" in console.file.getvalue()


def test_results_survive_json():
    found = results(Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=OverheadResults) == found
