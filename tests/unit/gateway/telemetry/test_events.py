import pytest

from gateway.errors import BackendRefused, BackendTimeout
from gateway.telemetry.events import EventCounter
from gateway.telemetry.metrics import Metrics


@pytest.mark.parametrize(
    ("errors", "codes"),
    [
        ([BackendRefused("no", status=400, type="x", code=f"made-up-{n}") for n in range(3)], {"400": 3.0}),
        ([BackendRefused("no", status=422, type="x", code=None)], {"422": 1.0}),
        ([BackendTimeout("slow")], {"backend_timeout": 1.0}),
    ],
)
def test_codes_of_an_engine_are_no_labels(errors, codes):
    metrics = Metrics()
    for error in errors:
        EventCounter(metrics).backend_failure("gpu", error)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    failures = [sample for sample in samples if sample.name == "magnus_backend_failures_total"]
    assert {sample.labels["code"]: sample.value for sample in failures} == codes
