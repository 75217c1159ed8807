"""Puts the commands together."""

import typer

import gateway
from gateway.cli.lazy import lazy_group

COMMANDS = {
    "serve": ("gateway.cli.serve:serve", "Run the gateway."),
    "demo": ("gateway.cli.demo:demo", "Run the gateway on simulated engines; replay a workload."),
    "engine": ("gateway.cli.engine:engine", "Run one simulated engine."),
    "backend": ("gateway.cli.backend:app", "Start a real engine and register it at a gateway."),
    "stats": ("gateway.cli.stats:stats", "Show what a running gateway remembers."),
    "history": ("gateway.cli.history:app", "What the gateway remembers of past requests."),
    "train": ("gateway.cli.train:train", "Train the length predictor now."),
    "evaluate": ("gateway.cli.evaluate:evaluate", "Measure length prediction on past requests."),
    "predictor": ("gateway.cli.predictor:app", "The length predictor's versions."),
    "simulate": ("gateway.cli.simulate:simulate", "Run the scheduling core in simulated time."),
    "keys": ("gateway.cli.keys:app", "Applications' API keys."),
    "db": ("gateway.cli.serve:db", "The database."),
}
"""Name to where the command is, and what it does."""

app = typer.Typer(
    name="magnus",
    cls=lazy_group(COMMANDS),
    help="The gateway in front of your own LLM engines.",
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
