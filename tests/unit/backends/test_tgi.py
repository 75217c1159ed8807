import httpx2
import pytest

from backends.base import BackendSpec, EngineError, ModelCard, Snapshot
from backends.http import Endpoint
from backends.tgi import Info, TgiBackend, read_snapshot

SPEC = BackendSpec(name="gpu-0", kind="tgi", url="http://gpu-0:8080")
V3 = Info("org/model", max_total_tokens=4096)
METRICS = b"""\
# TYPE tgi_queue_size gauge
tgi_queue_size 4
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 8
tgi_batch_current_max_tokens 2048
tgi_batch_max_total_tokens 16000
tgi_request_count 12
"""


def test_version_3_reports_its_capacity_in_the_metrics():
    assert read_snapshot(SPEC, V3, METRICS) == Snapshot(
        models=(ModelCard("org/model", 4096),),
        kv_capacity_tokens=16000,
        kv_used_tokens=2048,
        running=8,
        waiting=4,
    )


def test_version_2_reports_its_capacity_in_info():
    info = Info("org/model", max_total_tokens=4096, max_batch_total_tokens=32000)
    page = METRICS.replace(b"tgi_batch_max_total_tokens 16000\n", b"")
    assert read_snapshot(SPEC, info, page).kv_capacity_tokens == 32000


@pytest.mark.parametrize("page", [b"", b"tgi_batch_max_total_tokens 0\n"])
def test_an_unreported_capacity_is_unknown(page: bytes):
    assert read_snapshot(SPEC, V3, page).kv_capacity_tokens is None


def test_every_configured_name_has_the_models_length():
    spec = BackendSpec(name="gpu-0", kind="tgi", url="http://gpu-0:8080", models=("a", "b"))
    assert read_snapshot(spec, V3, b"").models == (ModelCard("a", 4096), ModelCard("b", 4096))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            422,
            b'{"error":"Input validation error: too long","error_type":"validation"}',
            EngineError("Input validation error: too long", "invalid_request_error", code="validation"),
        ),
        (
            429,
            b'{"error":"Model is overloaded","error_type":"overloaded"}',
            EngineError("Model is overloaded", "overloaded", code="overloaded"),
        ),
        (
            500,
            b'{"error":{"message":"Request failed","http_status_code":500}}',
            EngineError("Request failed", "server_error"),
        ),
    ],
)
def test_tgis_error_type_becomes_the_code(status: int, body: bytes, error: EngineError):
    backend = TgiBackend(Endpoint(SPEC, httpx2.AsyncBaseTransport(), 1.0))
    assert backend.read_error(status, body) == error
