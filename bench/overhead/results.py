"""The results of the benchmark, as one JSON object and as a table."""

import msgspec
from rich.table import Table

MAGNUS, AGAINST, LITELLM = "magnus", "against", "litellm"


class Row(msgspec.Struct, frozen=True):
    """One figure of every proxy.

    Attributes:
        what: what was measured.
        unit: unit of `values`.
        values: the figure of each proxy, by its name.
        target: the highest value that the gateway may have.
        load: the machine's load average when the figure was taken.
        ratio: the gateway's figure divided by that of the other checkout; None without one.
    """

    what: str
    unit: str
    values: dict[str, float]
    target: float | None
    load: float
    ratio: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the gateway's figure is within its target."""
        return None if self.target is None else self.values[MAGNUS] <= self.target


class OverheadResults(msgspec.Struct, frozen=True):
    """All figures and their circumstances.

    Attributes:
        quick: fewer requests and rounds.
        python: version of Python.
        machine: cores and CPU.
        own_core: no other process of the benchmark ran on the gateway's core.
        litellm: version of LiteLLM, None if it was not measured.
        rows: the figures.
        against: commit of the other checkout, None without one.
    """

    quick: bool
    python: str
    machine: str
    own_core: bool
    litellm: str | None
    rows: list[Row]
    against: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the proxies that were measured."""
        return (MAGNUS, *([AGAINST] if self.against else []), *([LITELLM] if self.litellm else []))

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of all columns but the first."""
        return ("", *self.columns, *(["ratio"] if self.against else []), "target", "load")

    def cells(self, row: Row) -> list[str]:
        """Return the texts of a row, one for each heading."""
        figures = [f"{row.values[name]:.3g}" if name in row.values else "" for name in self.columns]
        ratio = ["" if row.ratio is None else f"{row.ratio:.3f}"] if self.against else []
        target = "" if row.target is None else f"≤ {row.target:g}"
        return [row.unit, *figures, *ratio, target, f"{row.load:.1f}"]


def rich_table(results: OverheadResults) -> Table:
    """Return the figures as a table for a terminal."""
    table = Table("", title=f"The gateway's own cost ({results.machine}, Python {results.python})")
    for name in results.headings:
        table.add_column(name, justify="right")
    for row in results.rows:
        table.add_row(row.what, *results.cells(row), style="red" if row.reached is False else None)
    return table


def markdown(results: OverheadResults) -> str:
    """Return the figures as a Markdown page."""
    litellm = f", LiteLLM {results.litellm} with one worker (500 idle streams at most)" if results.litellm else ""
    against = f", against the checkout at {results.against}" if results.against else ""
    quick = " --quick" if results.quick else ""
    pinned = "The measured process has a core to itself; engine, client and Postgres share the others."
    lines = [
        "# The gateway's own cost",
        "",
        f"`python -m bench overhead{quick}` on {results.machine}, Python {results.python}{litellm}{against}.",
        "API keys, a trained model, the static embedder, the queue, history in Postgres and metrics are enabled.",
        "The engine answers with canned bytes.",
        pinned if results.own_core else "All processes share one core.",
        "CPU is the user and system time of the measured process. The proxies take turns; the median round counts.",
        "`load` is the machine's load average when the figure was taken, the benchmark's own processes included.",
        "",
        f"| | {' | '.join(results.headings)} |".replace("|  |", "| |"),
        f"| --- | {' | '.join('---' for _ in results.headings)} |",
    ]
    lines += [f"| {row.what} | {' | '.join(results.cells(row))} |" for row in results.rows]
    return "\n".join(lines) + "\n"
