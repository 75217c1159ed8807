"""The pictures of `python -m bench continuous`, one for each workload. Needs the extra `plots`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from bench.continuous.grid import Section
from bench.continuous.trials import TrialResult
from bench.plots import four_panels, grouped_bars, legend_above, lines, save

MAX_SERIES = 4
"""Most lines over time in one panel; more cannot be told apart."""


def draw(folder: Path, results: Sequence[TrialResult]) -> Iterator[Path]:
    """Draw each workload on its smallest fleet, and yield each file that was written."""
    for name in dict.fromkeys(one.workload for one in results):
        steady = [one for one in results if one.workload == name and one.section is Section.LOADS]
        fewest = min((one.engines for one in steady), default=0)
        if smallest := [one for one in steady if one.engines == fewest]:
            yield from _draw(folder, name, smallest)


def _draw(folder: Path, name: str, runs: Sequence[TrialResult]) -> Iterator[Path]:
    load = _overload(runs)
    at_load = [run for run in runs if run.load == load]
    figure, panels = four_panels()
    _mean_times(panels[0, 0], runs)
    _distribution(panels[0, 1], at_load)
    _occupancy(panels[1, 0], at_load)
    _throughput(panels[1, 1], runs)
    legend_above(figure, panels[0, 0], f"{name}, {runs[0].engines} engines")
    yield from save(figure, folder, f"continuous-{name}")


def _mean_times(axes: Axes, runs: Sequence[TrialResult]) -> None:
    lines(
        axes, {name: ([run.load for run in own], [run.report.mean_s for run in own]) for name, own in _by_policy(runs)}
    )
    axes.set(title="Mean time end to end by load", xlabel="share of saturation", ylabel="seconds")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")


def _distribution(axes: Axes, runs: Sequence[TrialResult]) -> None:
    for run in runs:
        levels = np.linspace(0.0, 1.0, len(run.curves.e2e_s))
        axes.plot(run.curves.e2e_s, levels, label=run.policy)
    title = f"Times end to end at load {runs[0].load:g}"
    axes.set(title=title, xlabel="seconds", ylabel="share of answers", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, which="major", alpha=0.3)


def _occupancy(axes: Axes, runs: Sequence[TrialResult]) -> None:
    """Draw KV memory in use over time for the policies that differ most."""
    colors = {run.policy: f"C{number % 10}" for number, run in enumerate(runs)}
    shown = [run for run in runs if run.policy in {"direct", "fcfs", "hrrn", "magnus"}] or list(runs)
    for run in shown[:MAX_SERIES]:
        axes.plot(run.curves.time_s, run.curves.occupancy, label=run.policy, color=colors[run.policy], linewidth=1)
    axes.set(title=f"KV memory in use at load {runs[0].load:g}", xlabel="seconds", ylabel="share", ylim=(0, 1.02))
    axes.grid(visible=True, alpha=0.3)


def _throughput(axes: Axes, runs: Sequence[TrialResult]) -> None:
    loads = sorted({run.load for run in runs})
    grouped_bars(axes, loads, {name: [run.report.tok_per_s for run in own] for name, own in _by_policy(runs)})
    axes.set(title="Throughput until the last arrival", xlabel="share of saturation", ylabel="tokens a second")


def _overload(runs: Sequence[TrialResult]) -> float:
    """Return the lowest load above saturation, or the highest load."""
    loads = sorted({run.load for run in runs})
    return next((load for load in loads if load > 1.0), loads[-1])


def _by_policy(runs: Sequence[TrialResult]) -> list[tuple[str, list[TrialResult]]]:
    names = dict.fromkeys(run.policy for run in runs)
    return [(name, [run for run in runs if run.policy == name]) for name in names]
