"""Finishes requests: writes the history record, updates the metrics and lets the predictor learn."""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.dispatch.context import RequestContext
from gateway.errors import ClientGone, GatewayError, RequestEvicted, RequestRejected
from gateway.prediction.features import vector_to_bytes
from gateway.prediction.predictor import Predictor
from gateway.protocol.generation_request import GenerationRequest
from gateway.storage.record import RequestRecord, Status
from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class RequestRecorder:
    """Finishes every request exactly once.

    Args:
        record: stores a record; must neither block nor raise.
        predictor: learns from complete answers.
        metrics: counts requests and measures times.
        store_prompts: keep the last user message in the record.
    """

    record: Callable[[RequestRecord], None]
    predictor: Predictor
    metrics: Metrics
    store_prompts: bool

    def finish(self, context: RequestContext, error: GatewayError | None, now: float) -> None:
        """Finish a request that ended at `now` (monotonic seconds); `error` is None if it succeeded.

        A request whose body could not be read is counted, but not recorded.
        """
        status = _status(error)
        self.metrics.requests.labels(context.route, status).inc()
        if context.generation is None or context.app is None:
            return
        self.record(self._record(context, context.generation, error, now))
        if status == "ok":
            self._learn(context, context.generation, now)

    def _record(
        self, context: RequestContext, generation: GenerationRequest, error: GatewayError | None, now: float
    ) -> RequestRecord:
        forecast = context.forecast
        learned = forecast.learned if forecast else None
        return RequestRecord(
            id=context.id,
            request_id=context.request_id,
            arrived_at=context.arrived_at,
            app=context.app or "",
            user=generation.user,
            model=generation.model,
            route=context.route,
            stream=generation.stream,
            status=_status(error),
            http_status=200 if error is None else error.status,
            backend=context.backend,
            error_code=None if error is None else str(error.code or error.type),
            finish_reason=context.finish_reason,
            sequences=generation.sequences,
            prompt_bytes=generation.text_bytes,
            max_tokens=generation.max_tokens,
            input_tokens=context.input_tokens,
            output_tokens=context.output_tokens,
            predicted_tokens=forecast.p50_tokens if forecast else None,
            predicted_p90_tokens=forecast.p90_tokens if forecast else None,
            prediction_source=forecast.source if forecast else None,
            queue_ms=_ms_since(context.arrival_s, context.dispatched_s),
            ttft_ms=_ms_since(context.arrival_s, context.first_byte_s),
            e2e_ms=_ms_since(context.arrival_s, now),
            prompt=generation.last_user if self.store_prompts else None,
            features=vector_to_bytes(learned.vector) if learned else None,
            features_version=self.predictor.features_version if learned else None,
            template=learned.key.template if learned else None,
        )

    def _learn(self, context: RequestContext, generation: GenerationRequest, now: float) -> None:
        forecast = context.forecast
        self.metrics.e2e_s.observe(now - context.arrival_s)
        if context.dispatched_s is not None:
            self.metrics.queue_s.observe(context.dispatched_s - context.arrival_s)
        if context.first_byte_s is not None:
            self.metrics.ttft_s.observe(context.first_byte_s - context.arrival_s)
        self.metrics.output_tokens.observe(context.output_tokens)
        if forecast is not None and context.output_tokens:  # 0 means that the engine did not report the number
            cut = context.finish_reason == "length"
            if cut and generation.bound_tokens is not None:
                self.metrics.fallbacks.labels("answer_cut").inc()
            self.predictor.learn_one(
                forecast,
                context.output_tokens,
                sequences=generation.sequences,
                input_tokens=context.input_tokens,
                cut=cut,
            )
            self.metrics.prediction_error.observe(
                abs(forecast.p50_tokens - context.output_tokens / generation.sequences)
            )


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
