"""The picture of `python -m bench paper`, as PNG and SVG. Needs the extra `plots`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.paper.report import PaperReport

FORMATS = ("png", "svg")
BAR_SPACE = 0.85
"""Of the distance between two rates."""


def draw(directory: Path, runs: Sequence[PaperReport]) -> Iterator[Path]:
    """Draw throughput and response times against the rate; yields each file that was written.

    The same runs give the same files.
    """
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    _bars(panels[0, 0], runs)
    _tokens(panels[0, 1], runs)
    _lines(panels[1, 0], runs, "mean response time, s", lambda run: run.mean_s)
    _lines(panels[1, 1], runs, "p99 of response time, s", lambda run: run.p99_s)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    with mpl.rc_context({"svg.hashsalt": "paper"}):
        for extension in FORMATS:
            path = directory / f"paper.{extension}"
            figure.savefig(path, dpi=110, metadata={"Date": None} if extension == "svg" else None)
            yield path


def _bars(axes: Axes, runs: Sequence[PaperReport]) -> None:
    rates, policies = _rates(runs), _policies(runs)
    width = BAR_SPACE / len(policies)
    for number, policy in enumerate(policies):
        own = [run for run in runs if run.policy == policy]
        offset = (number - (len(policies) - 1) / 2) * width
        axes.bar(np.arange(len(rates)) + offset, [run.req_per_s for run in own], width, label=policy)
    axes.set_xticks(np.arange(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set(title="Request throughput", xlabel="arrivals a second", ylabel="answers a second")


def _tokens(axes: Axes, runs: Sequence[PaperReport]) -> None:
    """Valid tokens and those after an answer's own end, at the highest rate."""
    highest = _rates(runs)[-1]
    own = [run for run in runs if run.rate == highest]
    names = [run.policy for run in own]
    axes.bar(names, [run.tok_per_s for run in own], color="lightgray", label="after an answer's end")
    bars = axes.bar(names, [run.valid_tok_per_s for run in own], color="tab:green", label="valid")
    axes.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white")
    axes.set(title=f"Token throughput at {highest:g} arrivals a second", ylabel="tokens a second")
    axes.legend()


def _lines(axes: Axes, runs: Sequence[PaperReport], label: str, figure: Callable[[PaperReport], float]) -> None:
    for policy in _policies(runs):
        own = [run for run in runs if run.policy == policy]
        axes.plot([run.rate for run in own], [figure(run) for run in own], marker="o", label=policy)
    axes.set(title=label.partition(",")[0].capitalize(), xlabel="arrivals a second", ylabel=label, yscale="log")
    axes.grid(visible=True, which="major", alpha=0.3)


def _rates(runs: Sequence[PaperReport]) -> list[float]:
    return sorted({run.rate for run in runs})


def _policies(runs: Sequence[PaperReport]) -> list[str]:
    return list(dict.fromkeys(run.policy for run in runs))
