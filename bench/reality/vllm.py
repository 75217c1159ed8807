"""The simulator and the gateway against a real vLLM on this machine's CPU: `python -m bench.reality.vllm FILE...`.

The engine is short of KV memory and ends each answer at its row's length, which nobody outside knows. It is calibrated
by a short load; then the same requests go straight to it and through the gateway under each policy, in turn, and
through the simulator. `make test-vllm` installs the engine. Run it on a machine that does nothing else.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import msgspec

from bench.reality.experiment import Bench, MeasurementError, progress_line
from bench.reality.gateway import GatewayError
from bench.reality.report import markdown, table
from bench.reality.results import Experiment, Plan, compare
from bench.reality.rows import TooFewRowsError, divide, read_files
from gateway.config import cache_dir
from gateway.errors import RowError
from gateway.prediction.embedder import load_embedder
from tests.vllm.engine import EngineError

LONGEST_ANSWER = 1000
CALIBRATION_ROWS = 400


def main() -> int:
    """Run the command."""
    options = _options()
    plan = Plan(
        policies=tuple(options.policy or ("fcfs",)),
        requests=options.requests,
        repetitions=options.repetitions,
        rate=options.rate,
        load=options.load,
        past=options.past,
        seed=options.seed,
        foreign_cores=options.foreign_cores,
    )
    try:
        experiment = measure(plan, options.files)
    except (RowError, TooFewRowsError) as error:
        return _failed(error, 2)
    except (EngineError, GatewayError, MeasurementError) as error:
        return _failed(error, 1)
    comparisons = compare(experiment)
    if options.results:
        options.results.mkdir(parents=True, exist_ok=True)
        command = "python -m bench.reality.vllm FILE... " + " ".join(_without_files(sys.argv[1:], options.files))
        (options.results / "reality.md").write_text(markdown(experiment, comparisons, command.strip()))
        (options.results / "reality.json").write_bytes(_json(experiment, indent=2) + b"\n")
    if options.json:
        shown = {"comparisons": comparisons, "experiment": experiment}
        sys.stdout.write(msgspec.json.encode(shown).decode() + "\n")
    else:
        sys.stdout.write(table(experiment, comparisons) + "\n")
    return 0


def measure(plan: Plan, files: list[Path]) -> Experiment:
    """Run the whole of it in a folder that is gone afterwards."""
    rows = read_files(files, longest=LONGEST_ANSWER, seed=plan.seed)
    parts = divide(rows, past=plan.past, calibration=CALIBRATION_ROWS, runs=plan.repetitions, each=plan.requests)
    progress_line("loading the embedding")
    embedder = load_embedder("static", cache_dir())
    with tempfile.TemporaryDirectory(prefix="magnus-reality-") as folder:
        bench = Bench(plan, parts, Path(folder), embedder, progress_line)
        return asyncio.run(bench.run())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="rows with prompts and output_tokens")
    parser.add_argument("--policy", action="append", help="the gateway's; may be repeated (default: fcfs)")
    parser.add_argument("--requests", type=int, default=200, help="in each run")
    parser.add_argument("--repetitions", type=int, default=3, help="of every policy, each with its own rows")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second (default: by --load)")
    parser.add_argument("--load", type=float, default=1.5, help="rate over what saturates the calibrated simulator")
    parser.add_argument("--past", type=int, default=3000, help="rows that warm the gateway's predictor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--foreign-cores", type=float, default=0.3, help="others may take in a run that counts")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="folder for reality.md and reality.json")
    return parser.parse_args()


def _without_files(arguments: list[str], files: list[Path]) -> list[str]:
    """Leave out where somebody's files are."""
    names = {str(path) for path in files}
    return [argument for argument in arguments if argument not in names]


def _json(experiment: Experiment, indent: int) -> bytes:
    return msgspec.json.format(msgspec.json.encode(experiment), indent=indent)


def _failed(error: Exception, code: int) -> int:
    sys.stderr.write(f"\nbench.reality: {error}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
