import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.record import RequestRecord
from gateway.training.registry import ModelRegistry, NewModel
from gateway.training.window import TrainingRows

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
FEATURES_VERSION = "1:off"


@pytest.fixture
def registry(engine: AsyncEngine) -> ModelRegistry:
    return ModelRegistry(engine)


@pytest.fixture
def a_model() -> Callable[..., NewModel]:
    """Returns a function that builds a trained model, with the changes of the test."""

    def build(**changed: Any) -> NewModel:
        ordinary: dict[str, Any] = {
            "rows": 1000,
            "window_start": NOON,
            "window_end": NOON + timedelta(hours=2),
            "fitted_until": NOON + timedelta(hours=1),
            "features_version": FEATURES_VERSION,
            "metrics": {"mae": 12.5},
            "artifact": b"\0model",
        }
        return NewModel(**(ordinary | changed))

    return build


@pytest.fixture
def rows(engine: AsyncEngine) -> TrainingRows:
    return TrainingRows(engine, features_version=FEATURES_VERSION, n_features=3)


@pytest.fixture
def a_record() -> Callable[..., RequestRecord]:
    """Returns a function that builds the record of request `number`, one second after the one before."""

    def build(number: int = 0, **changed: Any) -> RequestRecord:
        ordinary: dict[str, Any] = {
            "id": str(uuid4()),
            "request_id": f"req-{number}",
            "arrived_at": NOON + timedelta(seconds=number),
            "app": "translate",
            "user": "ann",
            "model": "llama",
            "route": "/v1/chat/completions",
            "stream": False,
            "status": "ok",
            "http_status": 200,
            "output_tokens": 50,
            "features": struct.pack("<3f", number, 1.5, float("nan")),
            "features_version": FEATURES_VERSION,
        }
        return RequestRecord(**(ordinary | changed))

    return build
