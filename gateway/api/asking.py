"""From the fields of a request to what a prediction may use."""

from gateway.prediction.prediction_input import PredictionInput, bounded, utf8_bytes
from gateway.protocol.fields import Generation


def ask_of(app: str, asked: Generation) -> PredictionInput:
    """Tell the predictor what the gateway sees of a request of the application."""
    text = asked.last_user or ""
    return PredictionInput(
        app=app,
        model=asked.model,
        user=asked.user,
        system=asked.system,
        text=bounded(text),
        text_bytes=asked.text_bytes,
        last_user_bytes=utf8_bytes(text),
        message_count=asked.message_count,
        max_tokens=asked.max_tokens,
        temperature=asked.temperature,
        sequences=asked.sequences,
        stop_count=asked.stop_count,
        tools_bytes=asked.tools_bytes,
        schema_bytes=asked.schema_bytes,
        json_mode=asked.schema_bytes > 0,
        reasoning_effort=asked.reasoning_effort,
        prompt_tokens=asked.prompt_tokens,
    )
