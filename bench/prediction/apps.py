"""`python -m bench prediction apps`: our predictor on rows of past requests."""

from typing import Annotated, Any

import typer

from bench.prediction.options import FilesArgument, InstructionsOption, SeedOption
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import load_embedder
from gateway.prediction.evaluation import Scored, evaluate


def command(
    files: FilesArgument,
    instructions: InstructionsOption = None,
    embedder_name: Annotated[str, typer.Option("--embedder", help="Embedder of the prompts.")] = "static",
    frozen: Annotated[bool, typer.Option("--frozen", help="Learn nothing from the test rows.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure our predictor on rows of past requests: all applications together, then each."""
    embedder = load_embedder(embedder_name)
    rows = read_rows(files, instructions)
    print_table(by_app(evaluate(rows, embedder, seed=seed, learn=not frozen)), as_json=as_json)


def by_app(scored: Scored) -> list[dict[str, Any]]:
    """Return a table's rows: all applications pooled, then each."""
    metrics = scored.metrics()
    apps = metrics.pop("by_app")
    times = {name: metrics[name] for name in ("predict_ms_p50", "predict_ms_p99")}
    return [{"app": "all", **metrics}] + [{"app": app, **own, **dict.fromkeys(times, "")} for app, own in apps.items()]
