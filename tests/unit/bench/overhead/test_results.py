import io

import msgspec
from rich.console import Console

from bench.overhead.results import OverheadResults, Row, markdown, rich_table
from bench.overhead.scenarios import Cpu


def results(*rows, litellm=None, against=None):
    return OverheadResults(
        quick=False,
        python="3.11.7",
        machine="2 cores",
        own_core=True,
        litellm=litellm,
        rows=list(rows),
        against=against,
    )


def test_figure_equal_to_its_target_reaches_it():
    assert Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0).reached


def test_target_applies_to_the_gateway_only():
    assert Row("CPU", "ms", {"magnus": 0.8, "litellm": 18.0}, 0.9, 1.0).reached
    assert Row("CPU", "ms", {"magnus": 1.0, "litellm": 0.1}, 0.9, 1.0).reached is False


def test_figure_without_target_is_neither_reached_nor_missed():
    assert Row("CPU", "ms", {"magnus": 0.9}, None, 1.0).reached is None


def test_page_has_a_line_for_each_figure_and_a_column_for_each_proxy():
    page = markdown(results(Row("CPU", "ms", {"magnus": 0.912, "litellm": 18.7}, 0.9, 1.5), litellm="1.0"))
    assert "| | | magnus | litellm | target | load |" in page
    assert "| CPU | ms | 0.912 | 18.7 | ≤ 0.9 | 1.5 |" in page


def test_missing_figure_of_litellm_leaves_its_cell_empty():
    page = markdown(results(Row("memory", "MiB", {"magnus": 182.0}, 250.0, 1.5), litellm="1.0"))
    assert "| memory | MiB | 182 |  | ≤ 250 | 1.5 |" in page


def test_page_without_litellm_has_no_column_for_it():
    assert "litellm" not in markdown(results(Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0)))


def test_other_checkout_has_a_column_and_a_ratio():
    page = markdown(results(Row("CPU", "ms", {"magnus": 0.8, "against": 1.0}, 0.9, 1.5, 0.8), against="7c22132"))
    assert "| | | magnus | against | ratio | target | load |" in page
    assert "| CPU | ms | 0.8 | 1 | 0.800 | ≤ 0.9 | 1.5 |" in page


def test_ratio_of_cpu_times_is_the_median_of_rounds():
    assert Cpu([1.0, 4.0, 3.0]).ratio_to(Cpu([2.0, 4.0, 2.0])) == 1.0


def test_terminal_table_shows_every_figure():
    output = io.StringIO()
    console = Console(file=output, width=120)
    console.print(rich_table(results(Row("CPU, JSON", "ms", {"magnus": 0.912}, 0.9, 1.5))))
    assert "CPU, JSON" in output.getvalue()
    assert "0.912" in output.getvalue()


def test_results_round_trip_through_json():
    found = results(Row("CPU", "ms", {"magnus": 0.9}, 0.9, 1.0))
    assert msgspec.json.decode(msgspec.json.encode(found), type=OverheadResults) == found
