"""The picture of `python -m bench paper`. Needs the extra `plots`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from bench.paper.report import PaperReport
from bench.plots import four_panels, grouped_bars, legend_above, lines, save


def draw(folder: Path, runs: Sequence[PaperReport]) -> Iterator[Path]:
    """Draw throughput and response times by arrival rate, and yield each file that was written."""
    rates = sorted({run.rate for run in runs})
    figure, panels = four_panels()
    grouped_bars(panels[0, 0], rates, {policy: [run.req_per_s for run in own] for policy, own in _by_policy(runs)})
    panels[0, 0].set(title="Request throughput", xlabel="arrivals a second", ylabel="answers a second")
    _tokens(panels[0, 1], [run for run in runs if run.rate == rates[-1]])
    _times(panels[1, 0], runs, "mean response time, s", lambda run: run.mean_s)
    _times(panels[1, 1], runs, "p99 of response time, s", lambda run: run.p99_s)
    legend_above(figure, panels[0, 0])
    yield from save(figure, folder, "paper")


def _tokens(axes: Axes, runs: Sequence[PaperReport]) -> None:
    """Draw valid tokens, and tokens that were generated after an answer's own end."""
    names = [run.policy for run in runs]
    axes.bar(names, [run.tok_per_s for run in runs], color="lightgray", label="after an answer's end")
    bars = axes.bar(names, [run.valid_tok_per_s for run in runs], color="tab:green", label="valid")
    axes.bar_label(bars, fmt="{:,.0f}", label_type="center", color="white")
    axes.set(title=f"Token throughput at {runs[0].rate:g} arrivals a second", ylabel="tokens a second")
    axes.legend()


def _times(axes: Axes, runs: Sequence[PaperReport], label: str, value: Callable[[PaperReport], float]) -> None:
    lines(axes, {name: ([run.rate for run in own], [value(run) for run in own]) for name, own in _by_policy(runs)})
    axes.set(title=label.partition(",")[0].capitalize(), xlabel="arrivals a second", ylabel=label)


def _by_policy(runs: Sequence[PaperReport]) -> list[tuple[str, list[PaperReport]]]:
    names = dict.fromkeys(run.policy for run in runs)
    return [(name, [run for run in runs if run.policy == name]) for name in names]
