"""The tables of `magnus bench continuous`, for a terminal and in Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gateway.simulation.continuous.comparison import Compared, sections
from gateway.simulation.continuous.grid import Section

Column = tuple[str, Callable[[Compared], str]]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}x" if 0.9 < value < 1.1 else f"{value:.2f}x"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


_LOAD: tuple[Column, ...] = (("load", lambda one: f"{one.load:g}"), ("policy", lambda one: one.policy))
_AGAINST_DIRECT: tuple[Column, ...] = (
    ("mean s", lambda one: f"{one.report.mean_s:,.2f}"),
    ("mean", lambda one: _times(one.mean_x)),
    ("p50", lambda one: _times(one.p50_x)),
    ("p99", lambda one: _times(one.p99_x)),
    ("TTFT", lambda one: _times(one.ttft_x)),
    ("short p50", lambda one: _times(one.short_p50_x)),
    ("tok/s", lambda one: _times(one.tok_per_s_x)),
    ("preempted", lambda one: f"{one.report.preemptions:,}"),
    ("KV used", lambda one: f"{one.report.kv_util:.2f}"),
    ("waiting", lambda one: f"{one.report.kv_util_waiting:.2f}" if one.report.waiting_share else "-"),
)
_TRUTH: tuple[Column, ...] = (("to true", lambda one: _times(one.clairvoyant_x)),)
_WITHOUT: tuple[Column, ...] = (("without", lambda one: one.variant or "(none)"), ("policy", lambda one: one.policy))
_REFUSING: tuple[Column, ...] = (
    ("policy", lambda one: one.policy),
    ("bound", lambda one: one.variant),
    ("arrived", lambda one: f"{one.requests:,}"),
    ("answered", lambda one: f"{one.report.n:,}"),
    ("dropped", lambda one: f"{one.report.dropped:,}"),
    ("queue p99 s", lambda one: f"{one.report.accepted_queue_p99_s:,.1f}"),
    ("p99 s", lambda one: f"{one.report.p99_s:,.1f}"),
    ("told s", lambda one: f"{one.report.retry_after_mean_s or 0.0:,.1f}"),
    ("passed", lambda one: _share(one.report.retry_passed)),
    ("room", lambda one: _share(one.report.retry_room)),
)
_COLUMNS: dict[Section, tuple[Column, ...]] = {
    Section.LOADS: _LOAD + _AGAINST_DIRECT + _TRUTH,
    Section.BURSTS: _LOAD + _AGAINST_DIRECT + _TRUTH,
    Section.FAULTS: _WITHOUT + _AGAINST_DIRECT,
    Section.OVERLOAD: _REFUSING,
}
_TITLES = {
    Section.LOADS: "steady arrivals",
    Section.BURSTS: "half of the requests in 5 % of the time",
    Section.FAULTS: "without what it relies on, load 1.2",
    Section.OVERLOAD: "ten times too much for ten minutes",
}
_LEGEND = """\
`mean` to `tok/s` are multiples of direct dispatch to the engine with the fewest requests, on the same arrivals. Times
are end to end. `short p50`: of answers shorter than the workload's median. `tok/s`: until the last arrival. `KV used`:
mean share of the KV memory over the whole run; `waiting`: while requests waited, at the gateway or in an engine.
`to true`: mean time over that of the same policy with true lengths. `@true` knows the true lengths; all others are
given the trained predictor's. `told`: mean Retry-After; `passed`: share of drops within whose Retry-After as many
requests left the queue as were in it; `room`: share for which the queue had room after it, though arrivals went on.
"""


def show(console: Console, runs: Sequence[Compared]) -> None:
    """Print all tables."""
    for title, section, rows in _tables(runs):
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, (heading, _) in enumerate(_COLUMNS[section]):
            table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
        before = rows[0].load
        for row in rows:
            if row.load != before:
                table.add_section()
            before = row.load
            table.add_row(*(cell(row) for _, cell in _COLUMNS[section]))
        console.print(table)


def markdown(runs: Sequence[Compared], saturation: Mapping[str, float], kv_tokens: Mapping[str, int]) -> str:
    """Return all tables as one page."""
    lines = ["# `magnus bench continuous`", "", _LEGEND]
    lines += [
        f"- {name}: {kv_tokens[name]:,} KV tokens an engine; saturation {rate:.3g} requests a second and engine"
        for name, rate in saturation.items()
    ]
    for title, section, rows in _tables(runs):
        columns = _COLUMNS[section]
        lines += ["", f"## {title}", "", _line(heading for heading, _ in columns)]
        lines.append(_line("---" if number < 2 else "---:" for number in range(len(columns))))
        lines += [_line(cell(row) for _, cell in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _tables(runs: Sequence[Compared]) -> Iterator[tuple[str, Section, list[Compared]]]:
    for (workload, section, engines), rows in sections(runs).items():
        yield f"{workload}, {engines} engines: {_TITLES[section]}", section, rows


def _line(cells: "Iterator[str] | Sequence[str]") -> str:
    return f"| {' | '.join(cells)} |"
