"""`magnus bench`: what produced the tables of the README."""

import typer

from gateway.cli.lazy import lazy_group

COMMANDS = {
    "continuous": ("gateway.cli.bench_continuous:continuous", "The queue's policies against none, by load and fleet."),
    "overhead": ("gateway.cli.bench_overhead:overhead", "What the gateway costs: CPU a request, latency, memory."),
    "paper": ("gateway.cli.bench_paper:paper", "The batch schedulers of arXiv 2406.04785."),
}
"""Name to where the command is, and what it does."""

app = typer.Typer(
    cls=lazy_group(COMMANDS), help="Benchmarks in simulated time.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _bench() -> None:
    """Benchmarks in simulated time."""
