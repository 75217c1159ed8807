"""Puts the commands together."""

import typer

import gateway
from gateway.cli import demo, engine, keys, serve, stats

app = typer.Typer(
    name="magnus",
    help="The gateway in front of your own LLM engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)
app.command("engine")(engine.engine)
app.command("stats")(stats.stats)
app.add_typer(keys.app, name="keys")
app.add_typer(serve.db, name="db")


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"magnus {gateway.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
