"""The tables of `python -m bench paper`, for a terminal and in Markdown."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.paper.experiment import BASELINE, OURS
from bench.paper.report import PaperReport
from bench.results import TABLES_BEGIN, TABLES_END, markdown_line

HEADINGS = ("policy", "req/s", "change", "tok/s", "valid", "mean s", "change", "p99 s", "OOM", "batch")

PAGE_RATES = (8.0, 12.0, 20.0, 40.0)
"""Rates of the page's first table. `paper.json` has all of them."""


def rich_table(title: str, runs: Sequence[PaperReport]) -> Table:
    """Return the table for a terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for run, cells in _rows(runs):
        if run.policy == BASELINE:
            table.add_section()
            table.add_row(f"[bold]{run.rate:g} req/s[/bold]")
        table.add_row(*cells)
    return table


def markdown(runs: Sequence[PaperReport]) -> str:
    """Return the page's tables: all policies at some rates, and ours against Magnus at all rates."""
    rates = sorted({run.rate for run in runs})
    shown = [rate for rate in rates if rate in PAGE_RATES] or rates
    lines = [markdown_line(("arrivals/s", *HEADINGS)), markdown_line("---" for _ in ("", *HEADINGS))]
    lines += [markdown_line((f"{run.rate:g}", *cells)) for run, cells in _rows(runs) if run.rate in shown]
    lines += ["", markdown_line(("arrivals/s", *(f"{rate:g}" for rate in rates)))]
    lines.append(markdown_line("---" for _ in ("", *rates)))
    for other in ("Magnus", "Magnus+q"):
        throughput, mean = zip(*_gains(runs, other), strict=True)
        lines.append(markdown_line((f"throughput, ours against {other}", *throughput)))
        lines.append(markdown_line((f"mean response time, ours against {other}", *mean)))
    return "\n".join([TABLES_BEGIN, *lines, TABLES_END, ""])


def _gains(runs: Sequence[PaperReport], other: str) -> Iterator[tuple[str, str]]:
    """Yield the changes of throughput and mean response time against another policy, rate by rate."""
    others = {run.rate: run for run in runs if run.policy == other}
    for run in runs:
        if run.policy == OURS:
            throughput, mean = run.gain(others[run.rate])
            yield f"{throughput:+.0%}", f"{mean:+.0%}"


def _rows(runs: Sequence[PaperReport]) -> Iterator[tuple[PaperReport, tuple[str, ...]]]:
    """Yield each run with its cells. The changes are against the baseline at the same rate."""
    baselines = {run.rate: run for run in runs if run.policy == BASELINE}
    for run in runs:
        throughput, mean = run.gain(baselines[run.rate])
        yield (
            run,
            (
                run.policy,
                f"{run.req_per_s:.2f}",
                f"{throughput:+.0%}",
                f"{run.tok_per_s:,.0f}",
                f"{run.valid_tok_per_s:,.0f}",
                f"{run.mean_s:,.1f}",
                f"{mean:+.1%}",
                f"{run.p99_s:,.0f}",
                f"{run.out_of_memory}",
                "-" if run.batch_size is None else f"{run.batch_size:.1f}",
            ),
        )
