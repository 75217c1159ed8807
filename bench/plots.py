"""What the pictures of the benchmarks have in common. Needs the extra `plots`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORMATS = ("png", "svg")

BAR_SPACE = 0.85
"""Width of a group of bars, as a share of the distance between two groups."""


def four_panels() -> tuple[Figure, Any]:
    """Return a figure and its (2, 2) axes."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    return figure, figure.subplots(2, 2)


def grouped_bars(axes: Axes, groups: Sequence[float], bars: Mapping[str, Sequence[float]]) -> None:
    """Draw one group of bars for each number in `groups`, with one bar of each series. `bars` has the heights."""
    width = BAR_SPACE / len(bars)
    for number, (label, heights) in enumerate(bars.items()):
        offset = (number - (len(bars) - 1) / 2) * width
        axes.bar(np.arange(len(heights)) + offset, heights, width, label=label)
    axes.set_xticks(np.arange(len(groups)), [f"{group:g}" for group in groups])


def lines(axes: Axes, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draw a line with markers for each (x, y) series, on a logarithmic y axis with plain numbers."""
    for label, (x, y) in series.items():
        axes.plot(x, y, marker="o", label=label)
    axes.set_yscale("log")
    axes.grid(visible=True, which="major", alpha=0.3)


def legend_above(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Put the labels of one panel above the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=title)


def save(figure: Figure, folder: Path, name: str) -> Iterator[Path]:
    """Write a figure as PNG and SVG, and yield each file. The same figure always gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": name}):
        for extension in FORMATS:
            path = folder / f"{name}.{extension}"
            figure.savefig(path, dpi=110, metadata={"Date": None} if extension == "svg" else None)
            yield path
