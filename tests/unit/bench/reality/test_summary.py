import pytest

from bench.reality.fit import Sample
from bench.reality.results import Calibration, Experiment, Plan, Run, compare
from bench.reality.summary import Figures, Timing, figures, medians, ratios, relative_errors


def made(mean_s, *, tok_per_s=100.0, preemptions=0):
    return Figures(mean_s, mean_s / 2, 2 * mean_s, 3 * mean_s, mean_s / 4, 1.0, tok_per_s, 2 * tok_per_s, preemptions)


def run(policy, repetition, measured, simulated):
    return Run(policy, repetition, measured, Sample(1, 1, 1, 1, 1.0), simulated, simulated, 0.0, 0.0, 0.0)


def experiment(*runs):
    plan = Plan(("fcfs",), 1, 1, 1.0, 1.0, 1, 0, 0.3)
    return Experiment(plan, Calibration(1, 1, 1, 1, 1, 1, 0.0, 0.0), 1.0, list(runs))


def test_a_run_lasts_from_its_first_arrival_to_its_last_token():
    summary = figures([Timing(1.0, 2.0, 3.0, 30), Timing(2.0, 4.0, 6.0, 20)], preemptions=2, loaded_tok_per_s=12.5)
    assert (summary.mean_s, summary.p50_s, summary.ttft_mean_s) == (3.0, 3.0, 1.5)
    assert (summary.req_per_s, summary.tok_per_s, summary.loaded_tok_per_s, summary.preemptions) == (0.4, 10.0, 12.5, 2)


def test_a_run_without_answers_has_no_figures():
    with pytest.raises(ValueError, match="no request"):
        figures([], 0, 0.0)


def test_ratios_divide_figure_by_figure():
    summary = ratios(made(1.0, tok_per_s=110.0), made(4.0, tok_per_s=100.0))
    assert (summary.mean, summary.p50, summary.tok_per_s) == pytest.approx((0.25, 0.25, 1.1))


def test_errors_pair_up():
    assert relative_errors([2.0, 1.0], [1.0, 2.0]) == [1.0, -0.5]
    with pytest.raises(ValueError, match="argument"):
        relative_errors([1.0], [1.0, 2.0])


def test_one_disturbed_run_does_not_move_the_medians():
    assert medians([made(1.0), made(100.0), made(2.0)])["mean_s"] == 2.0


def test_policies_are_compared_with_direct_run_by_run():
    direct, fcfs = compare(
        experiment(
            run("direct", 0, made(4.0, preemptions=10), made(5.0)),
            run("fcfs", 0, made(2.0, preemptions=1), made(2.0)),
            run("direct", 1, made(8.0, preemptions=10), made(8.0)),
            run("fcfs", 1, made(2.0, preemptions=3), made(4.0)),
        )
    )
    assert (direct.policy, fcfs.policy) == ("direct", "fcfs")
    assert direct.to_direct["mean"] == 1.0
    assert fcfs.to_direct["mean"] == pytest.approx((0.5 + 0.25) / 2)
    assert fcfs.to_direct_simulated["mean"] == pytest.approx((0.4 + 0.5) / 2)
    assert fcfs.errors["mean_s"] == pytest.approx(0.5)
    assert fcfs.worst["mean_s"] == pytest.approx(1.0)
    assert fcfs.preemptions_to_direct == pytest.approx(0.2)


def test_no_preemptions_of_direct_leave_the_ratio_open():
    (only,) = compare(experiment(run("direct", 0, made(1.0), made(1.0))))
    assert only.preemptions_to_direct is None
