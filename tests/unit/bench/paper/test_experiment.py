"""Properties of every policy of the paper's comparison."""

import pytest

from bench.paper.experiment import POLICIES
from bench.paper.jobs import Knowledge, poisson_jobs, samples, with_lengths
from bench.paper.policies import Vanilla, WmaBatches
from bench.paper.report import report
from bench.paper.run import run_static
from bench.paper.testbed import Job, Testbed
from gateway.scheduling.batch_time import KnnBatchTime
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.training.rows import PastRow
from tests.unit.bench.paper.paper_rows import rows


def jobs(rate=20.0, count=1500, knowledge=Knowledge.NOISY):
    return poisson_jobs(with_lengths(samples(rows()), knowledge), rate=rate, count=count)


@pytest.mark.parametrize("name", POLICIES)
def test_every_request_is_answered_once_after_its_arrival(name):
    arriving = jobs(count=150)
    result = POLICIES[name](arriving, Testbed())
    assert sorted(int(one.job.request.id) for one in result.done) == list(range(150))
    assert all(one.finished_s > one.job.request.arrival_s for one in result.done)
    assert all(one.generated_tokens >= one.job.output_tokens for one in result.done)


def test_requests_of_batches_that_ran_out_of_memory_are_answered():
    short = LengthQuantiles.of((10.0,) * 6, cap=1024)
    arriving = [Job(Request(str(i), "m", 50, short, 0.0, 1e9), 900) for i in range(600)]
    result = run_static(
        WmaBatches(Testbed().kv_capacity_tokens, KnnBatchTime(Testbed().batch_time)), arriving, Testbed()
    )
    assert result.failures > 0
    assert len(result.done) == 600


def test_answers_after_the_last_arrival_add_no_throughput():
    length = LengthQuantiles.of((100.0,) * 6)
    arriving = [Job(Request(str(i), "m", 50, length, float(i), 1e9), 100) for i in range(11)]
    result = run_static(Vanilla(1), arriving, Testbed(engines=1))
    figures = report("VS", 1.0, result)
    inside = sum(one.finished_s <= 10.0 for one in result.done)
    assert 0 < inside < 11
    assert figures.req_per_s == pytest.approx(inside / 10.0)
    assert figures.n == 11


def test_long_prompts_are_left_out_and_long_answers_are_cut():
    taken = samples(
        [
            PastRow(app="a", prompt="p", input_tokens=1025, output_tokens=5),
            PastRow(app="a", prompt="p", input_tokens=1000, output_tokens=3000, system="x" * 40),
        ]
    )
    assert [(one.prompt_tokens, one.output_tokens) for one in taken] == [(1010, 1024)]
    assert taken[0].length.quantile(0.99) == pytest.approx(1024)


def test_a_workload_without_a_short_prompt_is_an_error():
    with pytest.raises(ValueError, match="no prompt"):
        samples([PastRow(app="a", prompt="p", input_tokens=4000, output_tokens=5)])


def test_no_sample_is_drawn_twice_before_all_were_drawn():
    taken = samples(rows(50))
    drawn = poisson_jobs(taken, rate=5.0, count=100)
    first = [(job.request.prompt_tokens, job.output_tokens) for job in drawn[:50]]
    assert sorted(first) == sorted((one.prompt_tokens, one.output_tokens) for one in taken)
    assert drawn[-1].request.arrival_s == pytest.approx(100 / 5.0, rel=0.4)
