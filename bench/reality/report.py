"""The experiment as a table for the terminal, and as a page of the documentation."""

from collections.abc import Sequence

from bench.reality.engine import BLOCKS, MAX_SEQUENCES
from bench.reality.results import Comparison, Experiment
from bench.vllm_environment.engine import BLOCK_TOKENS

HEADINGS = (
    *("policy", "mean E2E s", "simulated", "error", "at speed", "p50 s", "simulated", "error"),
    *("tokens/s", "simulated", "error", "under load", "simulated", "error", "preemptions", "simulated", "steps' time"),
)
RATIO_HEADINGS = (
    *("policy / direct", "mean", "simulated", "p50", "simulated", "p99", "tokens/s", "under load", "simulated"),
    "preemptions",
)


def table(experiment: Experiment, comparisons: Sequence[Comparison]) -> str:
    """Return both tables as aligned text."""
    calibration = experiment.calibration
    return "\n".join(
        [
            _aligned([HEADINGS, *map(_figures, comparisons)]),
            "",
            _aligned([RATIO_HEADINGS, *map(_ratios, comparisons[1:])]),
            "",
            f"step: {_step(experiment)}; {calibration.samples} samples, "
            f"mean absolute error {calibration.mean_abs_error:.1%}, of the total {calibration.total_error:+.1%}; "
            f"{experiment.rate:.1f} requests/s",
        ]
    )


def markdown(experiment: Experiment, comparisons: Sequence[Comparison], command: str) -> str:
    """Return the page."""
    plan, calibration = experiment.plan, experiment.calibration
    disturbed = max(run.foreign_cores for run in experiment.runs)
    late = max(run.late_s for run in experiment.runs)
    return "\n".join(
        [
            "# The simulator and the gateway against a real vLLM",
            "",
            "vLLM runs on the CPU. On two cores or more the model has a core to itself, and all other processes share "
            f"the rest. The model is deep and thin; it has {BLOCKS} blocks of {BLOCK_TOKENS} tokens and at most "
            f"{MAX_SEQUENCES} sequences, so KV memory is the limit. The engine ends each answer at the length of its "
            "row; requests carry no `max_tokens`, and no client knows the lengths. "
            f"Each run has {plan.requests} requests at {experiment.rate:.1f} requests/s (Poisson). The policies take "
            f"turns in {plan.repetitions} repetitions, each with rows of its own; the tables show medians. The "
            f"gateway's predictor was trained on {plan.past} other rows.",
            "",
            "```",
            command,
            "```",
            "",
            "## Simulated and measured",
            f"The step model `a + b·running + c·kv + d·prefill` was fitted on {calibration.samples} samples of "
            f"{calibration.steps} steps of a short calibration load: {_step(experiment)}; mean absolute error "
            f"{calibration.mean_abs_error:.1%}, of the total {calibration.total_error:+.1%}. The simulator then ran "
            "the same arrivals with the engine's own prompt token counts. Errors are medians over the runs. "
            '"Under load" counts up to the last arrival. "Steps\' time" is the error of the step model on the '
            "steps that vLLM counted in the runs: the machine was that much faster or slower than in the calibration. "
            '"At speed" is the error with step times scaled by this factor.',
            "",
            *_page_table([HEADINGS, *map(_figures, comparisons)]),
            "",
            "Largest errors of a single run: " + "; ".join(map(_worst, comparisons)) + ".",
            "",
            "## The gateway over direct",
            *_page_table([RATIO_HEADINGS, *map(_ratios, comparisons[1:])]),
            "",
            f"Other processes used at most {disturbed:.2f} cores; the client was at most {1000 * late:.0f} ms late.",
            "",
        ]
    )


def _figures(comparison: Comparison) -> list[str]:
    measured, simulated, off = comparison.measured, comparison.simulated, comparison.errors
    cells = [comparison.policy]
    for name, digits in (("mean_s", 2), ("p50_s", 2), ("tok_per_s", 0), ("loaded_tok_per_s", 0)):
        cells += [f"{measured[name]:.{digits}f}", f"{simulated[name]:.{digits}f}", f"{off[name]:+.0%}"]
        if name == "mean_s":
            cells.append(f"{comparison.at_speed_errors[name]:+.0%}")
    preempted = (f"{figures['preemptions']:.0f}" for figures in (measured, simulated))
    return [*cells, *preempted, f"{comparison.steps_error:+.0%}"]


def _ratios(comparison: Comparison) -> list[str]:
    real, simulated, preempted = comparison.to_direct, comparison.to_direct_simulated, comparison.preemptions_to_direct
    cells = [comparison.policy, *(f"{value:.2f}" for value in (real["mean"], simulated["mean"]))]
    cells += [f"{value:.2f}" for value in (real["p50"], simulated["p50"], real["p99"], real["tok_per_s"])]
    cells += [f"{value:.2f}" for value in (real["loaded_tok_per_s"], simulated["loaded_tok_per_s"])]
    return [*cells, "-" if preempted is None else f"{preempted:.2f}"]


def _worst(comparison: Comparison) -> str:
    worst = comparison.worst
    return f"{comparison.policy} mean {worst['mean_s']:+.0%}, tokens/s {worst['tok_per_s']:+.0%}"


def _step(experiment: Experiment) -> str:
    fit = experiment.calibration
    return (
        f"a {1e3 * fit.a:.2f} ms, b {1e6 * fit.b:.0f} µs per sequence, c {1e9 * fit.c:.0f} ns per KV token, "
        f"d {1e6 * fit.d:.1f} µs per prompt token"
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _page_table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + " --- |" * len(lines[0]), *rest]
