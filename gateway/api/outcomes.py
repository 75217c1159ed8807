"""What becomes of a request when it is over: a record for history, a lesson for the predictor, numbers for metrics."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.api.exchange import Exchange
from gateway.errors import ClientGone, GatewayError, RequestEvicted, RequestRejected
from gateway.prediction.features import vector_to_bytes
from gateway.prediction.predictor import Outcome, Predictor
from gateway.protocol.fields import Generation
from gateway.storage.record import RequestRecord, Status
from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Takes every exchange at its end, exactly once.

    Args:
        record: takes the record; must neither block nor raise.
        store_prompts: keep the last user message with it.
    """

    record: Callable[[RequestRecord], None]
    predictor: Predictor
    metrics: Metrics
    store_prompts: bool

    def note(self, exchange: Exchange, error: GatewayError | None, now: float) -> None:
        """Note an exchange that ended at `now` (monotonic seconds), with an error or well.

        A request of which not even the model is known is counted, but leaves no record.
        """
        status = _status(error)
        self.metrics.requests.labels(exchange.route, status).inc()
        if exchange.asked is None or exchange.app is None:
            return
        self.record(self._record(exchange, exchange.asked, error, now))
        if status == "ok":
            self._learn(exchange, exchange.asked, now)

    def _record(self, exchange: Exchange, asked: Generation, error: GatewayError | None, now: float) -> RequestRecord:
        trip, forecast = exchange.trip, exchange.forecast
        learned = forecast.learned if forecast else None
        return RequestRecord(
            id=exchange.id,
            request_id=exchange.request_id,
            arrived_at=exchange.arrived_at,
            app=exchange.app or "",
            user=asked.user,
            model=asked.model,
            route=exchange.route,
            stream=asked.stream,
            status=_status(error),
            http_status=200 if error is None else error.status,
            backend=trip.backend,
            error_code=None if error is None else str(error.code or error.type),
            finish_reason=trip.finish_reason,
            sequences=asked.sequences,
            prompt_bytes=asked.text_bytes,
            max_tokens=asked.max_tokens,
            input_tokens=trip.input_tokens,
            output_tokens=trip.output_tokens,
            predicted_tokens=forecast.p50_tokens if forecast else None,
            predicted_p90_tokens=forecast.p90_tokens if forecast else None,
            prediction_source=forecast.source if forecast else None,
            queue_ms=_ms_since(trip.arrival_s, trip.dispatched_s),
            ttft_ms=_ms_since(trip.arrival_s, trip.first_byte_s),
            e2e_ms=_ms_since(trip.arrival_s, now),
            prompt=asked.last_user if self.store_prompts else None,
            features=vector_to_bytes(learned.vector) if learned else None,
            features_version=self.predictor.features_version if learned else None,
            template=learned.key.template if learned else None,
        )

    def _learn(self, exchange: Exchange, asked: Generation, now: float) -> None:
        trip, forecast = exchange.trip, exchange.forecast
        self.metrics.e2e_s.observe(now - trip.arrival_s)
        if trip.dispatched_s is not None:
            self.metrics.queue_s.observe(trip.dispatched_s - trip.arrival_s)
        if trip.first_byte_s is not None:
            self.metrics.ttft_s.observe(trip.first_byte_s - trip.arrival_s)
        self.metrics.output_tokens.observe(trip.output_tokens)
        if forecast is not None and trip.output_tokens:  # no count is not a count of none
            cut = trip.finish_reason == "length"
            if cut and exchange.bound_tokens is not None:
                self.metrics.fallbacks.labels("answer_cut").inc()
            outcome = Outcome(trip.input_tokens, trip.output_tokens, asked.sequences, cut)
            self.predictor.learn_one(forecast, outcome)
            self.metrics.prediction_error.observe(abs(forecast.p50_tokens - trip.output_tokens / asked.sequences))


def _status(error: GatewayError | None) -> Status:
    match error:
        case None:
            return "ok"
        case ClientGone():
            return "cancelled"
        case RequestRejected():
            return "rejected"
        case RequestEvicted():
            return "evicted"
        case _:
            return "failed"


def _ms_since(start_s: float, end_s: float | None) -> float | None:
    return None if end_s is None else round(1000 * (end_s - start_s), 3)
