"""What the benchmark found, as one JSON object and as a table."""

import msgspec
from rich.table import Table

COLUMNS = ("magnus", "litellm")


class Row(msgspec.Struct, frozen=True):
    """One figure of every proxy; `target` is the most that the gateway's may be, `load` the machine's at its end."""

    what: str
    unit: str
    values: dict[str, float]
    target: float | None
    load: float

    @property
    def reached(self) -> bool | None:
        """Whether the gateway's figure is within its target."""
        return None if self.target is None else self.values[COLUMNS[0]] <= self.target


class OverheadResults(msgspec.Struct, frozen=True):
    """All figures, and what they were measured on; `own_core`: the gateway had a core to itself among our processes."""

    quick: bool
    python: str
    machine: str
    own_core: bool
    litellm: str | None
    rows: list[Row]

    @property
    def columns(self) -> tuple[str, ...]:
        """The proxies that were measured."""
        return COLUMNS if self.litellm else COLUMNS[:1]


def rich_table(results: OverheadResults) -> Table:
    """Lay the figures out for a terminal."""
    table = Table("", title=f"The gateway's own cost ({results.machine}, Python {results.python})")
    for name in ("", *results.columns, "target", "load"):
        table.add_column(name, justify="right")
    for row in results.rows:
        style = "red" if row.reached is False else None
        table.add_row(row.what, row.unit, *_cells(row, results.columns), _target(row), f"{row.load:.1f}", style=style)
    return table


def markdown(results: OverheadResults) -> str:
    """Write the figures as a page."""
    peer = f", LiteLLM {results.litellm} with one worker (of idle streams it is given 500)" if results.litellm else ""
    quick = " --quick" if results.quick else ""
    pinned = "The measured process has a core to itself; engine, clients and Postgres share the others."
    lines = [
        "# The gateway's own cost",
        "",
        f"`python -m bench overhead{quick}` on {results.machine}, Python {results.python}{peer}.",
        "Everything is on: API keys, a trained model, the static embedder, the queue, history in Postgres, metrics.",
        "A canned engine answers.",
        pinned if results.own_core else "All processes share one core.",
        "CPU is user and system time of the measured process, the median of rounds that take turns; `load` is the",
        "machine's load average when the figure was taken, all processes of the benchmark included.",
        "",
        f"| | | {' | '.join(results.columns)} | target | load |",
        f"| --- | --- | {' | '.join('---' for _ in results.columns)} | --- | --- |",
    ]
    for row in results.rows:
        cells = " | ".join(_cells(row, results.columns))
        lines.append(f"| {row.what} | {row.unit} | {cells} | {_target(row)} | {row.load:.1f} |")
    return "\n".join(lines) + "\n"


def _cells(row: Row, columns: tuple[str, ...]) -> list[str]:
    return [f"{row.values[name]:.3g}" if name in row.values else "" for name in columns]


def _target(row: Row) -> str:
    return "" if row.target is None else f"≤ {row.target:g}"
