import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import CONTENT_TYPE, Metrics


def families(metrics):
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def test_every_metric_has_the_prefix_and_a_description():
    read = families(Metrics())
    assert len(read) >= 10
    assert all(name.startswith("magnus_") and family.documentation for name, family in read.items())


def test_counted_values_are_rendered():
    metrics = Metrics()
    metrics.requests.labels("/v1/completions", "ok").inc()
    metrics.waiting.set(7)
    read = families(metrics)
    (total,) = [s for s in read["magnus_requests"].samples if s.name == "magnus_requests_total"]
    assert (total.labels, total.value) == ({"route": "/v1/completions", "status": "ok"}, 1.0)
    assert read["magnus_queue_waiting"].samples[0].value == 7


def test_two_gateways_in_one_process_have_separate_metrics():
    one, other = Metrics(), Metrics()
    one.fallbacks.labels("x").inc()
    assert one.registry.get_sample_value("magnus_fallbacks_total", {"cause": "x"}) == 1
    assert other.registry.get_sample_value("magnus_fallbacks_total", {"cause": "x"}) is None


@pytest.mark.parametrize("seconds", [0.001, 0.3, 5000.0])
def test_time_of_any_length_has_a_bucket(seconds):
    metrics = Metrics()
    metrics.e2e_s.observe(seconds)
    samples = families(metrics)["magnus_e2e_seconds"].samples
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    assert {bound for bound, count in buckets.items() if count} == {bound for bound in buckets if bound >= seconds}


def test_no_label_contains_a_user():
    metrics = Metrics()
    labels = {label for metric in vars(metrics).values() for label in getattr(metric, "_labelnames", ())}
    assert labels == {"route", "status", "cause", "backend", "code", "state", "to", "result"}


def test_content_type_is_that_of_prometheus():
    assert CONTENT_TYPE.startswith("text/plain")
