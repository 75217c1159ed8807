"""Runs the same load on the simulator: the real scheduling core and a simulated engine with the calibrated steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from backends.simulator.config import EngineConfig
from backends.simulator.engine import PRESETS, Preset, StepTime
from bench.reality.engine import CONTEXT_TOKENS, KV_TOKENS, MAX_BATCHED_TOKENS, MAX_SEQUENCES
from bench.reality.replay import MODEL
from bench.reality.rows import Row
from bench.reality.summary import Timing
from bench.vllm_environment.engine import BLOCK_TOKENS
from gateway.prediction.embedder import Embedder
from gateway.prediction.evaluation import PastRequest, learn_history
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import HistoryKey, PredictionInput
from gateway.simulation.core import build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import ForecastLengths, Lengths
from gateway.simulation.run import Simulation
from gateway.simulation.saturation import saturation
from gateway.simulation.workload import Arrival

BACKLOG = 1000
"""Requests of the saturation run, many times the number that the engine runs at once."""


@dataclass(frozen=True, slots=True)
class CalibratedConfig(EngineConfig):
    """An engine with a measured step time instead of a preset."""

    step_time: StepTime = field(default=PRESETS["llama-8b-a100"].step_time, kw_only=True)

    @property
    def hardware(self) -> Preset:
        """Step time and memory of this benchmark's engine."""
        return Preset(self.step_time, kv_tokens=KV_TOKENS, max_model_len=CONTEXT_TOKENS)


def forecast(past: Sequence[Row], runs: Sequence[Sequence[Row]], embedder: Embedder) -> list[ForecastLengths]:
    """Return forecasts of each run's answers by a predictor that was trained on the gateway's history."""
    predictor = LengthPredictor(embedder)
    history = [PastRequest(_input(row), row.output_tokens, input_tokens=row.prompt_tokens) for row in past]
    predictor.serve(fit_predictor(learn_history(predictor.extractor, history)))
    return [ForecastLengths([predictor.predict_one(_input(row)).length for row in run]) for run in runs]


def simulate(
    policy: str,
    step_time: StepTime,
    rows: Sequence[Row],
    times_s: Sequence[float],
    lengths: Lengths,
) -> tuple[list[Timing], int, float]:
    """Run a load in simulated time.

    Args:
        policy: `direct`, or a policy of the gateway.
        step_time: step model of the engine.
        rows: requests with known prompt tokens.
        times_s: arrival time of each.
        lengths: the gateway's forecasts; `direct` ignores them.

    Returns:
        The requests' times, the engine's preemptions, and its tokens per second up to the last arrival.
    """
    backend = SimulatedBackend("gpu-0", _config(step_time))
    arrivals = [_arrival(i, row, time_s) for i, (row, time_s) in enumerate(zip(rows, times_s, strict=True))]
    result = Simulation(build_core(policy), lengths, [backend]).run(arrivals)
    timings = [
        Timing(trace.arrival.arrival_s, trace.first_token_s, trace.finished_s, trace.generated)
        for trace in result.requests
    ]
    return timings, backend.preemptions, result.tokens_in_window / result.window_s


def saturation_rate(step_time: StepTime, rows: Sequence[Row]) -> float:
    """Return the highest rate, in requests per second, that the engine can answer by its step model."""
    backlog = [_arrival(i, row, 0.0) for i, row in enumerate(islice(cycle(rows), BACKLOG))]
    return saturation(backlog, _config(step_time)).req_per_s


def _arrival(index: int, row: Row, time_s: float) -> Arrival:
    return Arrival(str(index), HistoryKey(row.app, MODEL), time_s, row.prompt_tokens, row.output_tokens, index)


def _config(step_time: StepTime) -> CalibratedConfig:
    return CalibratedConfig(
        block_size=BLOCK_TOKENS,
        max_num_seqs=MAX_SEQUENCES,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        step_time=step_time,
    )


def _input(row: Row) -> PredictionInput:
    size = len(row.prompt.encode(errors="surrogatepass"))
    return PredictionInput(app=row.app, model=MODEL, text=row.prompt, text_bytes=size, last_user_bytes=size)
