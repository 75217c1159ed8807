"""`python -m bench prediction traces`: lengths without texts, in time order.

Each answer is predicted from history alone and then learned. R2 is that of the log length, from the second quarter of
the trace on. `user_mean` is the reference: the mean of the user's earlier logs, shrunk to the mean of all users by
three rows. `user_oracle` knows the mean of each user over the whole trace; for stationary users no prediction from
history can be better. With `--size` the sizes of the prompts are known, as in a gateway.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from bench.prediction.rows import print_table, read_trace
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.evaluation import PastRequest, evaluate_online

Floats = NDArray[np.float64]

SHRINKAGE = 3.0


def command(
    traces: Annotated[list[Path], typer.Argument(help="Traces of arrivals and lengths, .csv.gz.")],
    output: Annotated[str, typer.Option(help="Column with the tokens of the answers.")] = "output_tokens",
    size: Annotated[bool, typer.Option("--size", help="Let the predictor see the sizes of the prompts.")] = False,
    max_rows: Annotated[int, typer.Option("--rows", help="Rows of each trace, at most.")] = 30_000,
    as_json: JsonOption = False,
) -> None:
    """Predict lengths in time order from history alone."""
    table = []
    for path in traces:
        rows = list(read_trace(path, output=output, with_size=size))[:max_rows]
        table.append({"trace": path.name.partition(".")[0], **online(rows)})
    print_table(table, as_json=as_json)


def online(rows: Sequence[PastRequest]) -> dict[str, Any]:
    """Return a row of the table: R2 of the reference, the oracle and our predictor, and our coverage."""
    scored = evaluate_online(rows, NoEmbedder(), first_training=2000, growth=3.0)
    logs = np.log(np.maximum(scored.actual, 1.0))
    measured = slice(len(rows) // 4, None)
    users = [row.input.user or row.input.app for row in rows]
    ours = scored.expected_logs
    return {
        "n": len(rows),
        "users": len(set(users)),
        "user_mean": r2(user_means(users, logs)[measured], logs[measured]),
        "user_oracle": r2(user_oracle(users, logs)[measured], logs[measured]),
        "ours": r2(ours[measured], logs[measured]),
        "p90_coverage": float(np.mean(scored.actual <= scored.p90)),
    }


def r2(predicted: Floats, actual: Floats) -> float:
    """Return the share of the variance that the predictions (n,) explain."""
    return float(1.0 - np.mean((actual - predicted) ** 2) / np.var(actual))


def user_means(users: Sequence[str], logs: Floats) -> Floats:
    """Return the shrunk mean of the user's earlier rows, for each row (n,)."""
    totals: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    everyone, means = 0.0, np.zeros(len(logs))
    for i, (user, value) in enumerate(zip(users, logs.tolist(), strict=True)):
        total, n = totals[user]
        means[i] = (total + SHRINKAGE * everyone / max(1, i)) / (n + SHRINKAGE)
        totals[user] = (total + value, n + 1)
        everyone += value
    return means


def user_oracle(users: Sequence[str], logs: Floats) -> Floats:
    """Return the mean over all of the user's rows, later ones included, for each row (n,)."""
    names = np.asarray(users)
    means = np.zeros(len(logs))
    for user in set(users):
        means[names == user] = logs[names == user].mean()
    return means
