import pytest

from backends.simulator.config import EngineConfig
from bench.continuous.comparison import compare, sections
from bench.continuous.grid import Candidate, Section, Trial
from bench.continuous.tables import markdown
from bench.continuous.trials import run_trials
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.experiment import Conditions, Workload
from tests.unit.gateway.simulation.past_rows import rows

FORECAST = LengthQuantiles.of((50.0, 80.0, 100.0, 120.0, 150.0, 170.0))


def workload(name="w"):
    past = rows(200, output_tokens=lambda i: 20 + 11 * i % 200)
    return Workload(name, past, EngineConfig(kv_tokens=4096, max_num_seqs=20), [FORECAST] * 200)


def trials(*names, section=Section.LOADS, **conditions):
    at = Conditions(**({"load": 1.3, "count": 120} | conditions))
    return [Trial(section, Candidate.parse(name), at) for name in names]


def run(*pairs, jobs=1):
    done = []
    found = run_trials(pairs, jobs, lambda: done.append(1))
    assert len(done) == len(found)
    return found


def test_results_come_in_the_order_of_the_trials():
    found = run((workload("a"), trials("direct", "hrrn")), (workload("b"), trials("fcfs", engines=4)))
    assert [(one.workload, one.policy, one.engines) for one in found] == [
        ("a", "direct", 2),
        ("a", "hrrn", 2),
        ("b", "fcfs", 4),
    ]


def test_other_processes_give_the_same_results():
    wanted = trials("direct", "hrrn", "hrrn@true")
    assert run((workload(), wanted), jobs=2) == run((workload(), wanted))


def test_true_lengths_replace_the_forecasts():
    predicted, true = run((workload(), trials("sjf", "sjf@true", load=1.5, count=200)))
    assert (predicted.policy, true.policy) == ("sjf", "sjf@true")
    assert true.report.mean_s < predicted.report.mean_s


def test_curves_show_every_answer_and_memory_over_the_whole_run():
    (one,) = run((workload(), trials("direct")))
    assert one.curves.e2e_s == sorted(one.curves.e2e_s)
    assert one.curves.e2e_s[len(one.curves.e2e_s) // 2] == pytest.approx(one.report.p50_s)
    assert all(0.0 <= share <= 1.0 for share in one.curves.occupancy)
    assert max(one.curves.occupancy) > 0.5


def test_ratios_are_to_direct_dispatch_under_the_same_conditions():
    found = run((workload(), [*trials("direct", "hrrn", "hrrn@true"), *trials("direct", "hrrn", load=0.5)]))
    compared = compare(found)
    direct, hrrn, clairvoyant = (one.report for one in found[:3])
    assert compared[0].mean_x == compared[0].tok_per_s_x == 1.0
    assert compared[1].mean_x == hrrn.mean_s / direct.mean_s
    assert compared[1].clairvoyant_x == hrrn.mean_s / clairvoyant.mean_s
    assert compared[4].mean_x == found[4].report.mean_s / found[3].report.mean_s
    assert compared[4].clairvoyant_x is None
    assert compared[4].preemptions_x is None  # direct has none at half the load


def test_a_fault_is_compared_with_direct_dispatch_without_faults():
    blind = Trial(Section.FAULTS, Candidate.parse("hrrn"), Conditions(load=1.3, count=120, blind=True), "no metrics")
    found = run((workload(), [*trials("direct", section=Section.FAULTS), blind]))
    assert compare(found)[1].mean_x == found[1].report.mean_s / found[0].report.mean_s


def test_an_overload_is_compared_with_nothing():
    bounded = Conditions(load=8.0, count=400, max_queue=20)
    found = run((workload(), [Trial(Section.OVERLOAD, Candidate.parse("hrrn"), bounded, "queue of 20")]))
    (one,) = compare(found)
    assert one.mean_x is None
    assert one.report.dropped > 100
    assert one.report.retry_after_mean_s > 0.0
    assert 0.0 <= one.report.retry_room <= 1.0
    assert 0.0 <= one.report.retry_passed <= 1.0


def test_the_page_has_every_run_in_a_table():
    compared = compare(run((workload(), trials("direct", "hrrn"))))
    page = markdown(compared, {"w": 1.5}, {"w": 4096})
    assert list(sections(compared)) == [("w", Section.LOADS, 2)]
    assert "saturation 1.5 requests a second" in page
    assert [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| 1.3")] == ["direct", "hrrn"]
