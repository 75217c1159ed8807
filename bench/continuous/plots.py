"""The pictures of `python -m bench continuous`, as PNG and SVG, one of each workload. Needs the extra `plots`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.continuous.grid import Section
from bench.continuous.trials import Tried

FORMATS = ("png", "svg")
BAR_SPACE = 0.85
"""Of the distance between two loads."""

MAX_SERIES = 4
"""Lines over time that one can still tell apart."""


def draw(directory: Path, tried: Sequence[Tried]) -> Iterator[Path]:
    """Draw each workload on its smallest fleet; yields each file that was written."""
    for name in dict.fromkeys(one.workload for one in tried):
        steady = [one for one in tried if one.workload == name and one.section is Section.LOADS]
        fewest = min((one.engines for one in steady), default=0)
        yield from _draw(directory, name, [one for one in steady if one.engines == fewest])


def _draw(directory: Path, name: str, runs: Sequence[Tried]) -> Iterator[Path]:
    if not runs:
        return
    load = _overload(runs)
    at_load = [run for run in runs if run.load == load]
    figure = Figure(figsize=(14, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    _lines(panels[0, 0], runs, lambda run: run.report.mean_s)
    _distribution(panels[0, 1], at_load)
    _series(panels[1, 0], at_load)
    _bars(panels[1, 1], runs)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), title=f"{name}, {runs[0].engines} engines"
    )
    with mpl.rc_context({"svg.hashsalt": name}):
        for extension in FORMATS:
            path = directory / f"continuous-{name}.{extension}"
            figure.savefig(path, dpi=110, metadata={"Date": None} if extension == "svg" else None)
            yield path


def _lines(axes: Axes, runs: Sequence[Tried], figure: Callable[[Tried], float]) -> None:
    for policy in _policies(runs):
        own = [run for run in runs if run.policy == policy]
        axes.plot([run.load for run in own], [figure(run) for run in own], marker="o", label=policy)
    axes.set(title="Mean time end to end by load", xlabel="share of saturation", ylabel="seconds", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="major", alpha=0.3)


def _distribution(axes: Axes, runs: Sequence[Tried]) -> None:
    for run in runs:
        levels = np.linspace(0.0, 1.0, len(run.curves.e2e_s))
        axes.plot(run.curves.e2e_s, levels, label=run.policy)
    axes.set(
        title=f"Times end to end at load {runs[0].load:g}", xlabel="seconds", ylabel="share of answers", xscale="log"
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="major", alpha=0.3)


def _series(axes: Axes, runs: Sequence[Tried]) -> None:
    """KV occupancy while requests arrive and after, of the contenders that differ most."""
    colors = {run.policy: f"C{number % 10}" for number, run in enumerate(runs)}
    shown = [run for run in runs if run.policy in {"direct", "fcfs", "hrrn", "magnus"}] or list(runs)
    for run in shown[:MAX_SERIES]:
        axes.plot(run.curves.time_s, run.curves.occupancy, label=run.policy, color=colors[run.policy], linewidth=1)
    axes.set(title=f"KV memory in use at load {runs[0].load:g}", xlabel="seconds", ylabel="share", ylim=(0, 1.02))
    axes.grid(visible=True, alpha=0.3)


def _bars(axes: Axes, runs: Sequence[Tried]) -> None:
    loads, policies = sorted({run.load for run in runs}), _policies(runs)
    width = BAR_SPACE / len(policies)
    for number, policy in enumerate(policies):
        own = [run.report.tok_per_s for run in runs if run.policy == policy]
        offset = (number - (len(policies) - 1) / 2) * width
        axes.bar(np.arange(len(own)) + offset, own, width, label=policy)
    axes.set_xticks(np.arange(len(loads)), [f"{load:g}" for load in loads])
    axes.set(title="Throughput until the last arrival", xlabel="share of saturation", ylabel="tokens a second")


def _overload(runs: Sequence[Tried]) -> float:
    """Return the lowest load over saturation, or the highest there is."""
    loads = sorted({run.load for run in runs})
    return next((load for load in loads if load > 1.0), loads[-1])


def _policies(runs: Sequence[Tried]) -> list[str]:
    return list(dict.fromkeys(run.policy for run in runs))
