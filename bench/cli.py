"""`python -m bench`: the benchmarks that produced the figures of the documentation."""

import typer

from gateway.cli.lazy import lazy_group

PREDICTION = {
    "apps": ("bench.prediction.apps:command", "Our predictor on rows of past requests, for each application."),
    "baselines": ("bench.prediction.baselines:command", "The predictors of arXiv 2406.04785 beside ours."),
    "chat-ceiling": ("bench.prediction.chat_ceiling:command", "How well one sampled answer predicts another."),
    "cold-start": ("bench.prediction.cold_start:command", "Applications that were not in the training."),
    "cut": ("bench.prediction.cut:command", "The probability that max_tokens cuts an answer."),
    "drift": ("bench.prediction.drift:command", "Answers that become longer at once."),
    "timings": ("bench.prediction.timings:command", "The time of a prediction and of a training."),
    "traces": ("bench.prediction.traces:command", "Lengths without texts, in time order."),
}
REALITY = {
    "static": ("bench.reality.static:command", "The static step model beside a real padded batch loop."),
    "vllm": ("bench.reality.vllm:command", "The simulator and the gateway beside a real vLLM."),
}
COMMANDS = {
    "continuous": ("bench.continuous.command:continuous", "The policies of the queue, by load and fleet."),
    "loadgen": ("bench.loadgen.run:command", "Run a load generator of others against a gateway."),
    "overhead": ("bench.overhead.command:overhead", "The gateway's own cost: CPU per request, latency, memory."),
    "paper": ("bench.paper.command:paper", "The batch schedulers of arXiv 2406.04785."),
    "path": ("bench.path:path", "The files and carrier types that a streamed chat request crosses."),
    "prediction": ("bench.cli:prediction", "Length prediction: errors, coverage and time."),
    "reality": ("bench.cli:reality", "The simulator and the gateway beside real engines."),
    "scheduling": ("bench.scheduling.decision:command", "CPU time of the scheduling core's steps."),
}
"""Name of each benchmark: where its command is, and one line of help. A module is imported when its command runs."""


def _group(name: str, commands: dict[str, tuple[str, str]], help_text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        cls=lazy_group(commands),
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


prediction = _group("prediction", PREDICTION, "Measure length prediction.")
reality = _group("reality", REALITY, "Compare the simulator and the gateway with real engines.")
app = _group("python -m bench", COMMANDS, "The benchmarks that produced the figures of the documentation.")


@app.callback()
def _bench() -> None:
    """The benchmarks that produced the figures of the documentation."""
