import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.demand import MAX_FOOTPRINT, Footprint


def test_requests_of_one_size_have_weight_one():
    footprint = Footprint()
    assert [footprint.weigh(250.0) for _ in range(50)] == [1.0] * 50


def test_weight_is_the_footprint_divided_by_the_typical_footprint():
    footprint = Footprint()
    for _ in range(500):
        footprint.weigh(100.0)
    assert footprint.weigh(400.0) == pytest.approx(4.0, rel=0.05)
    assert footprint.weigh(25.0) == pytest.approx(0.25, rel=0.05)


def test_typical_footprint_follows_the_requests():
    footprint = Footprint()
    for _ in range(1000):
        footprint.weigh(100.0)
    for _ in range(1000):
        footprint.weigh(1000.0)
    assert footprint.weigh(1000.0) == pytest.approx(1.0, rel=0.01)


def test_mean_weight_is_about_one():
    chance, footprint = random.Random(0), Footprint()
    weights = [footprint.weigh(chance.lognormvariate(5.0, 1.0)) for _ in range(5000)]
    assert sum(weights[500:]) / 4500 == pytest.approx(1.0, rel=0.1)


@given(st.lists(st.floats(0, 1e7), min_size=1))
def test_weight_is_bounded(tokens):
    footprint = Footprint()
    for each in tokens:
        assert 1 / MAX_FOOTPRINT <= footprint.weigh(each) <= MAX_FOOTPRINT
