"""`python -m bench reality static`: the static step model beside a real padded batch loop on this machine's CPU."""

import json
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer

from bench.reality.fit import fit_step_time
from bench.reality.options import FilesArgument, ResultsOption, progress_line, write_results
from bench.reality.padded import MeasuredBatch, homogeneous, mixed, throughput
from bench.reality.rows import Row, TooFewRowsError, read_files
from bench.vllm_environment.engine import OFFLINE
from bench.vllm_environment.install import environment, is_complete
from gateway.cli.options import JsonOption, bad_input, failed, print_json
from gateway.errors import RowError

WORKER = Path(__file__).with_name("static_worker.py")
HOMOGENEOUS, MIXED = "homogeneous", "mixed"
LONGEST_PROMPT_CHARS = 1500


class LoopError(RuntimeError):
    """The real loop is not installed, or ended early."""


class StaticResult(msgspec.Struct, frozen=True):
    """The step model in seconds, its errors on batches outside the fit, and tokens per second of both kinds of batches.

    `gain` is the throughput of homogeneous batches divided by that of mixed ones.
    """

    a: float
    b: float
    c: float
    d: float
    batch_size: int
    fitted_on: int
    judged_on: int
    mean_abs_error: float
    worst_error: float
    total_error: float
    tok_per_s: dict[str, float]
    tok_per_s_simulated: dict[str, float]
    gain: float
    gain_simulated: float


def command(
    files: FilesArgument,
    count: Annotated[int, typer.Option("--rows", help="Rows to fit on, and as many others to test on.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Rows of each batch.")] = 16,
    longest: Annotated[int, typer.Option(help="Longest answer in tokens; rows with longer ones are skipped.")] = 400,
    seed: int = 0,
    results: ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the static step model with a real padded batch loop on this machine's CPU.

    `model.generate` answers batches of rows, grouped by length or in random order. The step model is fitted on some
    batches and predicts the times of others. `make test-vllm` installs what it needs. Nothing else should run on the
    machine.
    """
    try:
        result = measure(read_files(files, longest=longest, seed=seed), count, batch_size, seed)
    except (RowError, TooFewRowsError) as error:
        bad_input(error)
    except LoopError as error:
        failed(error)
    if results:
        write_results(results, "reality-static", markdown(result), result)
    if as_json:
        print_json(result)
    else:
        typer.echo("\n".join(_table(result)))


def measure(rows: Sequence[Row], count: int, size: int, seed: int) -> StaticResult:
    """Fit the step model on batches of `count` rows, and test it on batches of `count` other rows.

    Raises:
        TooFewRowsError: there are fewer rows.
        LoopError: the loop cannot run.
    """
    rows = [row for row in rows if len(row.prompt) <= LONGEST_PROMPT_CHARS]
    if len(rows) < 2 * count:
        raise TooFewRowsError(f"{2 * count} rows are needed, and the files have {len(rows)}")
    fitting = _batches(rows[:count], size, seed)
    testing = _batches(rows[count : 2 * count], size, seed)
    plan = [*fitting, *testing]
    order = random.Random(seed).sample(range(len(plan)), len(plan))  # a drift of the machine affects all parts alike
    measured = dict(zip(order, _run([plan[i] for i in order]), strict=True))
    fitted = [measured[i] for i in range(len(fitting))]
    tested = [measured[i] for i in range(len(fitting), len(plan))]
    return _result(fitted, tested, size)


def _batches(rows: Sequence[Row], size: int, seed: int) -> list[tuple[str, list[Row]]]:
    alike = [(HOMOGENEOUS, batch) for batch in homogeneous(rows, size)]
    return alike + [(MIXED, batch) for batch in mixed(rows, size, seed)]


def _run(plan: Sequence[tuple[str, list[Row]]]) -> Iterator[MeasuredBatch]:
    """Send the batches to the loop one after the other, and yield their measurements."""
    home = environment()
    if not is_complete(home):
        raise LoopError("the environment of the real engine is not installed: run make test-vllm")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(
        [str(home / "bin" / "python"), str(WORKER), str(home / "tiny")],
        env=inherited | OFFLINE | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as loop:
        if loop.stdin is None or loop.stdout is None:
            raise LoopError("the loop has no pipes")
        for number, (kind, rows) in enumerate(plan):
            progress_line(f"batch {number + 1}/{len(plan)}")
            lengths = [row.output_tokens for row in rows]
            loop.stdin.write(json.dumps({"prompts": [row.prompt for row in rows], "output_tokens": lengths}) + "\n")
            loop.stdin.flush()
            yield _read(loop.stdout.readline(), kind, lengths)


def _read(line: str, kind: str, lengths: Sequence[int]) -> MeasuredBatch:
    if not line:
        raise LoopError("the loop ended early; see its output above")
    measured = json.loads(line)
    if measured["generated_tokens"] != max(lengths):
        raise LoopError(f"a batch generated {measured['generated_tokens']} tokens instead of {max(lengths)}")
    return MeasuredBatch(kind=kind, useful_tokens=sum(lengths), **measured)


def _result(fitted: Sequence[MeasuredBatch], tested: Sequence[MeasuredBatch], size: int) -> StaticResult:
    step_time = fit_step_time([batch.sample() for batch in fitted])
    simulated = np.array([batch.simulated_s(step_time) for batch in tested])
    real = np.array([batch.seconds for batch in tested])
    off = simulated / real - 1.0
    kinds = {kind: [batch for batch in tested if batch.kind == kind] for kind in (HOMOGENEOUS, MIXED)}
    speed = {kind: throughput(batches) for kind, batches in kinds.items()}
    simulated_speed = {kind: throughput(batches, step_time) for kind, batches in kinds.items()}
    return StaticResult(
        a=step_time.a,
        b=step_time.b,
        c=step_time.c,
        d=step_time.d,
        batch_size=size,
        fitted_on=len(fitted),
        judged_on=len(tested),
        mean_abs_error=float(np.abs(off).mean()),
        worst_error=float(off[np.abs(off).argmax()]),
        total_error=float(simulated.sum() / real.sum() - 1.0),
        tok_per_s=speed,
        tok_per_s_simulated=simulated_speed,
        gain=speed[HOMOGENEOUS] / speed[MIXED],
        gain_simulated=simulated_speed[HOMOGENEOUS] / simulated_speed[MIXED],
    )


def _table(result: StaticResult) -> list[str]:
    speeds = [
        f"{kind}: {result.tok_per_s[kind]:.0f} tokens/s measured, {result.tok_per_s_simulated[kind]:.0f} simulated"
        for kind in (HOMOGENEOUS, MIXED)
    ]
    return [
        f"step: a {1e3 * result.a:.2f} ms, b {1e6 * result.b:.0f} µs per sequence, "
        f"c {1e9 * result.c:.0f} ns per KV token, d {1e6 * result.d:.1f} µs per prompt token",
        f"batch time on {result.judged_on} other batches: mean absolute error {result.mean_abs_error:.1%}, "
        f"worst {result.worst_error:+.0%}, of the total {result.total_error:+.1%}",
        *speeds,
        f"homogeneous over mixed: {result.gain:.2f} measured, {result.gain_simulated:.2f} simulated",
    ]


def markdown(result: StaticResult) -> str:
    """Return the result as a Markdown page."""
    return "\n".join(
        [
            "# The static model against a real padded batch loop",
            "",
            f"`model.generate` of a tiny Llama on one CPU thread, batches of {result.batch_size} rows, padded on the "
            "left. Each answer ends at its row's length and waits for the longest of its batch. The step model was "
            f"fitted on {result.fitted_on} batches and tested on {result.judged_on} batches of other rows.",
            "",
            "```",
            "python -m bench reality static FILE...",
            "```",
            "",
            *(f"- {line}" for line in _table(result)),
            "",
        ]
    )
