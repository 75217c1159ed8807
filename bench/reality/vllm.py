"""`python -m bench reality vllm`: the simulator and the gateway beside a real vLLM on this machine's CPU."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from bench.reality.experiment import Bench, MeasurementError
from bench.reality.options import FilesArgument, ResultsOption, progress_line, write_results
from bench.reality.report import markdown, table
from bench.reality.results import Experiment, Plan, compare
from bench.reality.rows import TooFewRowsError, divide, read_files
from bench.vllm_environment.engine import EngineError
from bench.warm_gateway import StartError
from gateway.cli.options import JsonOption, bad_input, failed, print_json
from gateway.errors import RowError
from gateway.prediction.embedder import StaticEmbedder

LONGEST_ANSWER = 1000
CALIBRATION_ROWS = 400


def command(  # noqa: PLR0913 - one parameter for each option
    files: FilesArgument,
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy of the gateway; may be repeated (default: fcfs).")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of each run.")] = 200,
    repetitions: Annotated[int, typer.Option(help="Runs of every policy, each with rows of its own.")] = 3,
    rate: Annotated[float, typer.Option(help="Requests per second; 0: as --load says.")] = 0.0,
    load: Annotated[float, typer.Option(help="Rate relative to the one that saturates the simulator.")] = 1.5,
    past: Annotated[int, typer.Option(help="Rows of history that train the gateway's predictor.")] = 3000,
    seed: int = 0,
    foreign_cores: Annotated[float, typer.Option(help="Cores that other processes may use in a valid run.")] = 0.3,
    results: ResultsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the simulator and the gateway with a real vLLM on this machine's CPU.

    The engine has little KV memory and ends each answer at its row's length, which no client knows. A short load
    calibrates its step model. Then the same requests go directly to it, through the gateway under each policy, and
    through the simulator. `make test-vllm` installs the engine. Nothing else should run on the machine.
    """
    plan = Plan(tuple(policy or ("fcfs",)), requests, repetitions, rate, load, past, seed, foreign_cores)
    try:
        experiment = measure(plan, files)
    except (RowError, TooFewRowsError) as error:
        bad_input(error)
    except (EngineError, StartError, MeasurementError) as error:
        failed(error)
    comparisons = compare(experiment)
    if results:
        options = [argument for argument in sys.argv[1:] if argument not in {str(path) for path in files}]
        page = markdown(experiment, comparisons, f"python -m bench {' '.join([*options[:2], 'FILE...', *options[2:]])}")
        write_results(results, "reality", page, experiment)
    if as_json:
        print_json({"comparisons": comparisons, "experiment": experiment})
    else:
        typer.echo(table(experiment, comparisons))


def measure(plan: Plan, files: list[Path]) -> Experiment:
    """Run the whole experiment in a temporary folder."""
    rows = read_files(files, longest=LONGEST_ANSWER, seed=plan.seed)
    parts = divide(rows, past=plan.past, calibration=CALIBRATION_ROWS, runs=plan.repetitions, each=plan.requests)
    progress_line("loading the embedder")
    embedder = StaticEmbedder()
    with tempfile.TemporaryDirectory(prefix="magnus-reality-") as folder:
        bench = Bench(plan, parts, Path(folder), embedder, progress_line)
        return asyncio.run(bench.run())
