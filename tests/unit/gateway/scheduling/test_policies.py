from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.policies import CLASS_RATIO, Fcfs, Hrrn, Sjf, length_class, policy_named

services = st.floats(1e-4, 1e5)
waits = st.floats(0, 1e5)
alphas = st.floats(0.05, 2)


@given(services)
def test_class_spans_its_ratio(service_s):
    number = length_class(service_s)
    assert CLASS_RATIO**number <= service_s * (1 + 1e-9)
    assert service_s < CLASS_RATIO ** (number + 1) * (1 + 1e-9)


@given(services, services)
def test_longer_service_is_never_in_a_lower_class(one, other):
    shorter, longer = sorted((one, other))
    assert length_class(shorter) <= length_class(longer)


def test_service_time_of_zero_has_a_class():
    assert length_class(0.0) == length_class(1e-9)


@given(alphas, services, waits, st.floats(0.01, 1e4))
def test_response_ratio_grows_while_a_request_waits(alpha, service_s, wait_s, more_s):
    policy = Hrrn(alpha)
    assert policy.urgency(0.0, service_s, wait_s + more_s) > policy.urgency(0.0, service_s, wait_s)


@given(alphas, services, waits)
def test_of_two_equal_lengths_the_longer_wait_is_more_urgent(alpha, service_s, wait_s):
    for policy in (Fcfs(), Hrrn(alpha)):
        assert policy.urgency(0.0, service_s, wait_s + 1.0) > policy.urgency(1.0, service_s, wait_s + 1.0)


@given(services, st.floats(1.01, 100), st.floats(1, 1e5))
def test_of_two_equal_waits_the_shorter_service_is_more_urgent(service_s, factor, wait_s):
    for policy in (Sjf(), Hrrn()):
        assert policy.urgency(0.0, service_s, wait_s) > policy.urgency(0.0, service_s * factor, wait_s)


def test_small_exponent_is_nearly_first_come_first_served():
    policy = Hrrn(alpha=0.01)
    assert policy.urgency(0.0, 10.0, 100.0) > policy.urgency(20.0, 0.1, 100.0)
    assert Hrrn().urgency(0.0, 10.0, 100.0) < Hrrn().urgency(20.0, 0.1, 100.0)


def test_first_come_first_served_has_one_lane_and_ignores_the_length():
    assert Fcfs().lane(0.01) == Fcfs().lane(1000.0)
    assert Fcfs().urgency(0.0, 0.01, 5.0) == Fcfs().urgency(0.0, 1000.0, 5.0)


@pytest.mark.parametrize("name", ["fcfs", "sjf", "hrrn", "magnus"])
def test_policies_have_the_names_of_the_settings(name):
    assert policy_named(name).name == name


def test_only_magnus_dispatches_waves():
    assert [policy_named(name).homogeneous for name in ("fcfs", "sjf", "hrrn", "magnus")] == [False, False, False, True]


def test_exponent_applies_to_both_of_its_policies():
    magnus: Any = policy_named("magnus", 0.5)
    assert (policy_named("hrrn", 0.5), magnus.alpha) == (Hrrn(0.5), 0.5)


def test_error_of_an_unknown_policy_lists_the_known_ones():
    with pytest.raises(ValueError, match="policy: 'lifo' is none of fcfs, sjf, hrrn, magnus"):
        policy_named("lifo")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_exponent_must_be_above_zero(alpha):
    with pytest.raises(ValueError, match="alpha"):
        policy_named("hrrn", alpha)
