"""Plots of an evaluation, each as PNG and SVG. They need the extra `plots`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gateway.prediction.evaluation import Scored
from gateway.prediction.length_model import LengthModel

FORMATS = ("png", "svg")
MAX_POINTS = 5000
N_BINS = 10
N_IMPORTANCES = 25
CURVE_ROWS = 500
"""Number of rows over which a learning curve is averaged."""


def draw_plots(directory: Path, scored: Scored, model: LengthModel, *, online: bool) -> Iterator[Path]:
    """Draw all plots. Yields the path of each file that was written.

    Args:
        directory: created if it is missing.
        scored: the predictions and the actual lengths.
        model: the model of the last training.
        online: whether the rows are in the order of time. Then the learning curve is the error over the rows.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[Axes], None]] = {
        "learning_curve": (lambda axes: _error_over_rows(axes, scored))
        if online
        else (lambda axes: _loss(axes, model)),
        "predicted_vs_actual": lambda axes: _scatter(axes, scored),
        "calibration": lambda axes: _calibration(axes, scored),
    }
    if hasattr(model, "booster_"):  # false if there were too few rows for a training
        drawings["feature_importance"] = lambda axes: _importance(axes, model)
    for name, draw in drawings.items():
        figure = Figure(figsize=(8, 6), layout="constrained")
        draw(figure.subplots())
        for extension in FORMATS:
            path = directory / f"{name}.{extension}"
            figure.savefig(path, dpi=120)
            yield path


def _error_over_rows(axes: Axes, scored: Scored) -> None:
    """Draw the mean absolute error over the rows, from the first rows without a model to the last ones."""
    window = max(1, min(CURVE_ROWS, len(scored.actual) // 4))
    errors = np.abs(scored.median - scored.actual)
    axes.plot(np.arange(window, len(errors) + 1), np.convolve(errors, np.ones(window) / window, "valid"))
    axes.set(title="Learning curve", xlabel="requests", ylabel=f"mean absolute error of {window} requests, tokens")


def _loss(axes: Axes, model: LengthModel) -> None:
    """Draw the loss over the trees, for the training rows and the rows that choose the number of trees."""
    names = {"learn": "training", "validation": "held out"}
    for part, losses in model.booster_.get_evals_result().items():
        for values in losses.values():
            axes.plot(np.arange(1, len(values) + 1), values, label=names.get(part, part))
    axes.set(title="Learning curve", xlabel="trees", ylabel="mean pinball loss of log tokens")
    axes.legend()


def _scatter(axes: Axes, scored: Scored) -> None:
    """Draw the predicted median over the actual length, in tokens on log scales."""
    drawn = np.random.default_rng(0).permutation(len(scored.actual))[:MAX_POINTS]
    apps = scored.apps[drawn]
    for app in sorted(set(apps.tolist())):
        rows = drawn[apps == app]
        axes.scatter(np.maximum(1, scored.actual[rows]), scored.median[rows], s=4, alpha=0.4, label=app or "unnamed")
    limits = (1.0, float(max(scored.actual.max(), scored.median.max(), 2.0)))
    axes.plot(limits, limits, color="black", linewidth=1)
    axes.set(title="Predicted and actual length", xlabel="actual tokens", ylabel="predicted median, tokens")
    axes.set(xscale="log", yscale="log")
    axes.legend(markerscale=3)


def _calibration(axes: Axes, scored: Scored) -> None:
    """Draw the share of answers within their quantiles, for ten groups of equal size by predicted median."""
    order = np.argsort(scored.median, kind="stable")
    bins = [rows for rows in np.array_split(order, N_BINS) if len(rows)]
    middles = [float(np.median(scored.median[rows])) for rows in bins]
    quantiles: tuple[tuple[float, NDArray[np.float64]], ...] = ((0.5, scored.median), (0.9, scored.p90))
    for level, values in quantiles:
        line = axes.plot(middles, [np.mean(scored.actual[rows] <= values[rows]) for rows in bins], marker="o")[0]
        line.set_label(f"within the {level} quantile")
        axes.axhline(level, color=line.get_color(), linestyle="--", linewidth=1)
    axes.set(title="Calibration", xlabel="predicted median, tokens", ylabel="share of answers", ylim=(0, 1.02))
    axes.set_xscale("log")
    axes.legend()


def _importance(axes: Axes, model: LengthModel) -> None:
    """Draw the most important features of the trees."""
    shares = list(model.feature_importances().items())[:N_IMPORTANCES][::-1]
    axes.barh([name for name, _ in shares], [share for _, share in shares])
    axes.tick_params(axis="y", labelsize=8)
    axes.set(title="Feature importance", xlabel="percent")
