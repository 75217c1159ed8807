"""The entry point of `magnus`, and its list of commands."""

import typer

import gateway
from gateway.cli.lazy import lazy_group

COMMANDS = {
    "serve": ("gateway.cli.serve:serve", "Run the gateway."),
    "demo": ("gateway.cli.demo:demo", "Run the gateway on simulated engines, and replay a workload."),
    "engine": ("gateway.cli.engine:engine", "Run one simulated engine."),
    "backend": ("gateway.cli.backend:app", "Start a real engine and register it at a gateway."),
    "stats": ("gateway.cli.stats:stats", "Show the statistics of a running gateway."),
    "history": ("gateway.cli.history:app", "Import past requests."),
    "train": ("gateway.cli.train:train", "Train the length predictor."),
    "evaluate": ("gateway.cli.evaluate:evaluate", "Measure length prediction on past requests."),
    "predictor": ("gateway.cli.predictor:app", "List, promote and roll back versions of the length predictor."),
    "simulate": ("gateway.cli.simulate:simulate", "Simulate the scheduler on a workload."),
    "keys": ("gateway.cli.keys:app", "Create, list and revoke API keys."),
    "db": ("gateway.cli.db:app", "Migrate the database."),
}
"""By name: the location of the command, and its one-line help."""

app = typer.Typer(
    name="magnus",
    cls=lazy_group(COMMANDS),
    help="Magnus is a gateway in front of your own LLM engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"magnus {gateway.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
