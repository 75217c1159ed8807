"""The same load on the simulator: the real scheduling core, and the engine by its calibrated step model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from backends.simulator.config import EngineConfig
from backends.simulator.engine import PRESETS, Preset, StepTime
from bench.reality.client import MODEL
from bench.reality.engine import CONTEXT_TOKENS, KV_TOKENS, MAX_BATCHED_TOKENS, MAX_SEQUENCES
from bench.reality.rows import Row
from bench.reality.summary import Timing
from gateway.prediction.embedder import Embedder
from gateway.prediction.evaluation import PastRequest, learn_history
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.history import Caller
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.simulation.core import build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import ForecastLengths, Lengths
from gateway.simulation.run import Simulation
from gateway.simulation.saturation import saturation
from gateway.simulation.workload import Arrival
from tests.vllm.engine import BLOCK_TOKENS

BACKLOG = 1000
"""Requests that saturate the engine, many times what it runs at once."""


@dataclass(frozen=True, slots=True)
class CalibratedConfig(EngineConfig):
    """An engine of which the step time was measured, not derived from a data sheet."""

    step_time: StepTime = field(default=PRESETS["llama-8b-a100"].step_time, kw_only=True)

    @property
    def hardware(self) -> Preset:
        """The engine of this benchmark."""
        return Preset(self.step_time, kv_tokens=KV_TOKENS, max_model_len=CONTEXT_TOKENS)


def forecast(past: Sequence[Row], runs: Sequence[Sequence[Row]], embedder: Embedder) -> list[ForecastLengths]:
    """Forecast the answers of runs as the gateway's trained predictor does that has the same past."""
    predictor = LengthPredictor(FeatureExtractor(embedder))
    history = [PastRequest(_ask(row), row.output_tokens, input_tokens=row.prompt_tokens) for row in past]
    predictor.serve(fit_predictor(learn_history(predictor.extractor, history)))
    return [ForecastLengths([predictor.predict_one(_ask(row)).length for row in run]) for run in runs]


def simulate(
    policy: str,
    step_time: StepTime,
    rows: Sequence[Row],
    times_s: Sequence[float],
    lengths: Lengths,
) -> tuple[list[Timing], int, float]:
    """Run a load in simulated time.

    Args:
        policy: `direct`, or the gateway's.
        step_time: of the engine.
        rows: with the engine's counts of their prompts.
        times_s: when each arrives.
        lengths: what the gateway predicts; `direct` does not look at it.

    Returns:
        The requests' times, the engine's preemptions, and its tokens a second up to the last arrival.
    """
    backend = SimulatedBackend("gpu-0", _config(step_time))
    arrivals = [_arrival(i, row, time_s) for i, (row, time_s) in enumerate(zip(rows, times_s, strict=True))]
    outcome = Simulation(build_core(policy), lengths, [backend]).run(arrivals)
    timings = [
        Timing(flight.arrival.arrival_s, flight.first_token_s, flight.finished_s, flight.generated)
        for flight in outcome.flights
    ]
    return timings, backend.preemptions, outcome.tokens_in_window / outcome.window_s


def saturation_rate(step_time: StepTime, rows: Sequence[Row]) -> float:
    """Return the requests a second that the engine can answer at most, by its step model."""
    backlog = [_arrival(i, row, 0.0) for i, row in enumerate(islice(cycle(rows), BACKLOG))]
    return saturation(backlog, _config(step_time)).req_per_s


def _arrival(index: int, row: Row, time_s: float) -> Arrival:
    return Arrival(str(index), Caller(row.app, MODEL), time_s, row.prompt_tokens, row.output_tokens, index)


def _config(step_time: StepTime) -> CalibratedConfig:
    return CalibratedConfig(
        block_size=BLOCK_TOKENS,
        max_num_seqs=MAX_SEQUENCES,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        step_time=step_time,
    )


def _ask(row: Row) -> PredictionInput:
    size = len(row.prompt.encode(errors="surrogatepass"))
    return PredictionInput(app=row.app, model=MODEL, text=row.prompt, text_bytes=size, last_user_bytes=size)
