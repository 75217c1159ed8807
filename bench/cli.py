"""`python -m bench`: the benchmarks that produced the tables of the README."""

import typer

from gateway.cli.lazy import lazy_group

COMMANDS = {
    "continuous": ("bench.continuous.command:continuous", "The queue's policies against none, by load and fleet."),
    "overhead": ("bench.overhead.command:overhead", "What the gateway costs: CPU a request, latency, memory."),
    "paper": ("bench.paper.command:paper", "The batch schedulers of arXiv 2406.04785."),
}
"""Name to where the command is, and what it does."""

app = typer.Typer(
    name="python -m bench",
    cls=lazy_group(COMMANDS),
    help="The benchmarks that produced the tables of the README.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _bench() -> None:
    """The benchmarks that produced the tables of the README."""
