"""The paper's comparison with few requests: what each policy is there to show."""

import pytest

from bench.paper.experiment import OURS, compare
from bench.paper.jobs import Knowledge, samples, with_lengths
from tests.unit.bench.paper.paper_rows import rows


@pytest.fixture(scope="module")
def overload():
    return {one.policy: one for one in compare(with_lengths(samples(rows()), Knowledge.NOISY), 25.0, count=3000)}


def test_each_step_of_the_paper_adds_throughput_under_overload(overload):
    rates = [overload[name].req_per_s for name in ("VSQ", "VS", "GLP", "ABP")]
    assert rates == sorted(rates)
    assert overload["Magnus"].mean_s < overload["ABP"].mean_s < overload["GLP"].mean_s < overload["VS"].mean_s


def test_ours_answers_sooner_than_magnus_at_no_less_throughput(overload):
    ours, magnus = overload[OURS], overload["Magnus"]
    assert ours.mean_s <= 0.85 * magnus.mean_s
    assert ours.req_per_s >= magnus.req_per_s


def test_continuous_batches_generate_no_invalid_token(overload):
    assert overload["CCB"].tok_per_s == overload["CCB"].valid_tok_per_s
    assert overload["VS"].tok_per_s > overload["VS"].valid_tok_per_s


def test_the_same_seed_gives_the_same_run():
    taken = with_lengths(samples(rows()), Knowledge.NOISY)
    assert list(compare(taken, 9.0, count=200)) == list(compare(taken, 9.0, count=200))
