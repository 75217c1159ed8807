"""Our predictor on rows of past requests: `python -m bench.prediction.apps FILE... [--instructions FILE] [--json]`."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.prediction.rows import print_table, read_rows
from gateway.prediction.embedder import load_embedder
from gateway.prediction.evaluation import Scored, evaluate


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--instructions", type=Path, help="system prompts by app and task")
    parser.add_argument("--embedder", default="static")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "magnus-embedder")
    parser.add_argument("--frozen", action="store_true", help="learn nothing from the test rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    embedder = load_embedder(options.embedder, options.cache)
    rows = read_rows(options.files, options.instructions)
    print_table(by_app(evaluate(rows, embedder, seed=options.seed, learn=not options.frozen)), as_json=options.json)


def by_app(scored: Scored) -> list[dict[str, Any]]:
    """Return a table's rows: all applications pooled, then each."""
    metrics = scored.metrics()
    apps = metrics.pop("by_app")
    times = {name: metrics[name] for name in ("predict_ms_p50", "predict_ms_p99")}
    return [{"app": "all", **metrics}] + [{"app": app, **own, **dict.fromkeys(times, "")} for app, own in apps.items()]


if __name__ == "__main__":
    main()
