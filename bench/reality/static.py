"""The static model against a real padded batch loop on this machine's CPU: `python -m bench.reality.static FILE...`.

`model.generate` answers batches of a workload's rows, put together by length or as they come. The step model is fitted
on some batches and says what others take. `make test-vllm` installs what it needs. Nothing else should run meanwhile.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.reality.experiment import progress_line
from bench.reality.fit import fit_step_time
from bench.reality.padded import MeasuredBatch, homogeneous, mixed, throughput
from bench.reality.rows import Row, TooFewRowsError, read_files
from gateway.errors import RowError
from tests.vllm.engine import OFFLINE
from tests.vllm.install import environment, is_complete

WORKER = Path(__file__).with_name("static_worker.py")
HOMOGENEOUS, MIXED = "homogeneous", "mixed"
LONGEST_PROMPT_CHARS = 1500


class LoopError(RuntimeError):
    """The real loop is not installed, or died."""


class StaticResult(msgspec.Struct, frozen=True):
    """The step model in seconds, its errors on batches that it was not fitted on, and tokens a second of both kinds.

    `gain` is homogeneous over mixed throughput.
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


def main() -> int:
    """Run the command."""
    options = _options()
    try:
        rows = read_files(options.files, longest=options.longest, seed=options.seed)
        result = measure(rows, options.rows, options.batch_size, options.seed)
    except (RowError, TooFewRowsError) as error:
        return _failed(error, 2)
    except LoopError as error:
        return _failed(error, 1)
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        (options.results / "reality-static.json").write_bytes(_json(result, indent=2) + b"\n")
        (options.results / "reality-static.md").write_text(markdown(result))
    sys.stdout.write((_json(result).decode() if options.json else "\n".join(_table(result))) + "\n")
    return 0


def measure(rows: Sequence[Row], count: int, size: int, seed: int) -> StaticResult:
    """Fit on batches of some rows, and judge on those of as many others.

    Raises:
        TooFewRowsError: there are not enough.
        LoopError: the loop could not be run.
    """
    rows = [row for row in rows if len(row.prompt) <= LONGEST_PROMPT_CHARS]
    if len(rows) < 2 * count:
        raise TooFewRowsError(f"{2 * count} rows are needed, and the files have {len(rows)}")
    fitting = _batches(rows[:count], size, seed)
    judging = _batches(rows[count : 2 * count], size, seed)
    plan = [*fitting, *judging]
    order = random.Random(seed).sample(range(len(plan)), len(plan))  # whatever drifts meanwhile is in all parts
    measured = dict(zip(order, _run([plan[i] for i in order]), strict=True))
    fitted = [measured[i] for i in range(len(fitting))]
    judged = [measured[i] for i in range(len(fitting), len(plan))]
    return _result(fitted, judged, size)


def _batches(rows: Sequence[Row], size: int, seed: int) -> list[tuple[str, list[Row]]]:
    alike = [(HOMOGENEOUS, batch) for batch in homogeneous(rows, size)]
    return alike + [(MIXED, batch) for batch in mixed(rows, size, seed)]


def _run(plan: Sequence[tuple[str, list[Row]]]) -> Iterator[MeasuredBatch]:
    """Let the loop answer the batches, one after the other."""
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
            raise LoopError("no pipes to the loop")
        for number, (kind, rows) in enumerate(plan):
            progress_line(f"batch {number + 1}/{len(plan)}")
            lengths = [row.output_tokens for row in rows]
            loop.stdin.write(json.dumps({"prompts": [row.prompt for row in rows], "output_tokens": lengths}) + "\n")
            loop.stdin.flush()
            yield _read(loop.stdout.readline(), kind, lengths)


def _read(line: str, kind: str, lengths: Sequence[int]) -> MeasuredBatch:
    if not line:
        raise LoopError("the loop died; what it said stands above")
    told = json.loads(line)
    if told["generated_tokens"] != max(lengths):
        raise LoopError(f"a batch went on for {told['generated_tokens']} tokens in place of {max(lengths)}")
    return MeasuredBatch(kind=kind, useful_tokens=sum(lengths), **told)


def _result(fitted: Sequence[MeasuredBatch], judged: Sequence[MeasuredBatch], size: int) -> StaticResult:
    step_time = fit_step_time([batch.sample() for batch in fitted])
    simulated = np.array([batch.simulated_s(step_time) for batch in judged])
    real = np.array([batch.seconds for batch in judged])
    off = simulated / real - 1.0
    kinds = {kind: [batch for batch in judged if batch.kind == kind] for kind in (HOMOGENEOUS, MIXED)}
    speed = {kind: throughput(batches) for kind, batches in kinds.items()}
    said = {kind: throughput(batches, step_time) for kind, batches in kinds.items()}
    return StaticResult(
        a=step_time.a,
        b=step_time.b,
        c=step_time.c,
        d=step_time.d,
        batch_size=size,
        fitted_on=len(fitted),
        judged_on=len(judged),
        mean_abs_error=float(np.abs(off).mean()),
        worst_error=float(off[np.abs(off).argmax()]),
        total_error=float(simulated.sum() / real.sum() - 1.0),
        tok_per_s=speed,
        tok_per_s_simulated=said,
        gain=speed[HOMOGENEOUS] / speed[MIXED],
        gain_simulated=said[HOMOGENEOUS] / said[MIXED],
    )


def _table(result: StaticResult) -> list[str]:
    speeds = [
        f"{kind}: {result.tok_per_s[kind]:.0f} tokens/s measured, {result.tok_per_s_simulated[kind]:.0f} simulated"
        for kind in (HOMOGENEOUS, MIXED)
    ]
    return [
        f"step: a {1e3 * result.a:.2f} ms, b {1e6 * result.b:.0f} µs a sequence, c {1e9 * result.c:.0f} ns a KV token, "
        f"d {1e6 * result.d:.1f} µs a prompt token",
        f"batch time on {result.judged_on} others: mean absolute error {result.mean_abs_error:.1%}, "
        f"worst {result.worst_error:+.0%}, of the total {result.total_error:+.1%}",
        *speeds,
        f"homogeneous over mixed: {result.gain:.2f} measured, {result.gain_simulated:.2f} simulated",
    ]


def markdown(result: StaticResult) -> str:
    """Return the page."""
    return "\n".join(
        [
            "# The static model against a real padded batch loop",
            "",
            f"`model.generate` of a tiny Llama on one CPU thread, batches of {result.batch_size} rows, padded on the "
            "left; each answer ends at its row's length and waits for its batch's longest. The step model was fitted "
            f"on {result.fitted_on} batches and judged on {result.judged_on} of other rows.",
            "",
            "```",
            "python -m bench.reality.static FILE...",
            "```",
            "",
            *(f"- {line}" for line in _table(result)),
            "",
        ]
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="rows with prompts and output_tokens")
    parser.add_argument("--rows", type=int, default=128, help="to fit on, and as many others to judge by")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--longest", type=int, default=400, help="longest answer that takes part, in tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="folder for reality-static.md and reality-static.json")
    return parser.parse_args()


def _json(result: StaticResult, indent: int = 0) -> bytes:
    encoded = msgspec.json.encode(result)
    return msgspec.json.format(encoded, indent=indent) if indent else encoded


def _failed(error: Exception, code: int) -> int:
    sys.stderr.write(f"\nbench.reality: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
