"""The tables of `python -m bench continuous`, for a terminal and in Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.continuous.comparison import Compared, sections
from bench.continuous.grid import QUEUE_OF, Section
from bench.results import markdown_line

Column = tuple[str, Callable[[Compared], str]]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _fine_ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _seconds(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


_LOAD: Column = ("load", lambda one: f"{one.load:g}")
_POLICY: Column = ("policy", lambda one: one.policy)
_AGAINST_DIRECT: tuple[Column, ...] = (
    ("mean s", lambda one: _seconds(one.report.mean_s)),
    ("mean", lambda one: _fine_ratio(one.mean_x)),
    ("p50", lambda one: _ratio(one.p50_x)),
    ("p99", lambda one: _ratio(one.p99_x)),
    ("TTFT", lambda one: _ratio(one.ttft_x)),
    ("short", lambda one: _ratio(one.short_p50_x)),
    ("tok/s", lambda one: _fine_ratio(one.tok_per_s_x)),
    ("preem.", lambda one: f"{one.report.preemptions}"),
    ("wait", lambda one: f"{one.report.kv_util_waiting:.2f}" if one.report.waiting_share else "-"),
)
_TRUTH: tuple[Column, ...] = (("true", lambda one: _ratio(one.clairvoyant_x)),)
_VARIANT: tuple[Column, ...] = (("", lambda one: one.variant or one.policy),)
_DROPS: tuple[Column, ...] = (
    _POLICY,
    ("bound", lambda one: one.variant.removeprefix(QUEUE_OF)),
    ("arrived", lambda one: f"{one.requests:,}"),
    ("answered", lambda one: f"{one.report.n:,}"),
    ("dropped", lambda one: f"{one.report.dropped:,}"),
    ("queue p99", lambda one: _seconds(one.report.accepted_queue_p99_s)),
    ("p99 s", lambda one: _seconds(one.report.p99_s)),
    ("retry s", lambda one: _seconds(one.report.retry_after_mean_s or 0.0)),
    ("ratio", lambda one: _ratio(one.report.retry_ratio)),
    ("room", lambda one: _share(one.report.retry_room)),
)
_COLUMNS: dict[Section, tuple[Column, ...]] = {
    Section.LOADS: (_LOAD, _POLICY, *_AGAINST_DIRECT, *_TRUTH),
    Section.BURST: (_LOAD, _POLICY, *_AGAINST_DIRECT, *_TRUTH),
    Section.FAULTS: _VARIANT + _AGAINST_DIRECT,
    Section.OVERLOAD: _DROPS,
}
_NAMES = {"", "load", "policy"}
_TITLES = {
    Section.LOADS: "steady arrivals",
    Section.BURST: "half of the requests in 5 % of the time",
    Section.FAULTS: "one fault each, load 1.2",
    Section.OVERLOAD: "ten times too many requests for ten minutes",
}
_LEGEND = """\
`mean` to `tok/s` are ratios to direct dispatch of the same arrivals. Direct dispatch sends each request at once to the
engine with the fewest requests. Times are end to end, and `mean s` is in seconds. `short` is the median time of answers
that are shorter than the workload's median. `tok/s` counts until the last arrival. `preem.` counts preemptions. `wait`
is the mean share of KV memory in use while requests waited, at the gateway or in an engine. `true` is the mean time
over the mean time of the same policy with true lengths. Policies with `@true` get the true lengths. All others get the
lengths of the predictor, which was trained on rows that are not simulated.

Overload: `bound` is the longest queue, in requests. Times are in seconds. `queue p99` is the 0.99-quantile of the queue
time. `retry s` is the mean Retry-After of the drops. `ratio` is the median of Retry-After over the time until as many
requests had left the queue as were in it; 1 is exact. `room` is the share of drops after whose Retry-After the queue
had room, although arrivals went on.
"""


def show(console: Console, runs: Sequence[Compared]) -> None:
    """Print all tables."""
    for title, section, rows in _tables(runs):
        table = Table(title=title, box=SIMPLE_HEAD, padding=0)
        columns = [column for column in _COLUMNS[section] if column is not _LOAD]
        for heading, _ in columns:
            table.add_column(heading, justify="left" if heading in _NAMES else "right", no_wrap=True)
        for load, of_load in groupby(rows, lambda row: row.load):
            if _LOAD in _COLUMNS[section]:
                table.add_section()
                table.add_row(f"[bold]load {load:g}[/bold]")
            for row in of_load:
                table.add_row(*(cell(row) for _, cell in columns))
        console.print(table)


def markdown(runs: Sequence[Compared], saturation: Mapping[str, float], kv_tokens: Mapping[str, int]) -> str:
    """Return all tables as one page."""
    lines = ["# `python -m bench continuous`", "", _LEGEND]
    lines += [
        f"- {name}: {kv_tokens[name]:,} KV tokens an engine; saturation {rate:.3g} requests a second and engine"
        for name, rate in saturation.items()
    ]
    for title, section, rows in _tables(runs):
        columns = _COLUMNS[section]
        lines += ["", f"## {title}", "", markdown_line(heading for heading, _ in columns)]
        lines.append(markdown_line("---" if heading in _NAMES else "---:" for heading, _ in columns))
        lines += [markdown_line(cell(row) for _, cell in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _tables(runs: Sequence[Compared]) -> Iterator[tuple[str, Section, list[Compared]]]:
    for (workload, section, engines), rows in sections(runs).items():
        yield f"{workload}, {engines} engines: {_TITLES[section]}", section, rows
