import pytest

from backends.simulator.config import EngineConfig
from bench.continuous.grid import Candidate, Grid, Section, chunks, steady_requests
from gateway.simulation.experiment import Workload
from gateway.simulation.times import Pattern
from tests.unit.gateway.simulation.past_rows import rows

WORKLOAD = Workload("w", rows(100, output_tokens=50), EngineConfig(kv_tokens=4096, max_num_seqs=20))
"""One for all tests, since its saturation is measured once."""


def tried(wanted, section):
    return [trial for trial in wanted.trials(WORKLOAD) if trial.section is section]


def loads_by_engines(wanted):
    found = {}
    for trial in tried(wanted, Section.LOADS):
        found.setdefault(trial.conditions.engines, set()).add(trial.conditions.load)
    return found


@pytest.mark.parametrize("text", ["direct", "hrrn", "hrrn:0.55", "magnus@true", "hrrn:0.6@true"])
def test_a_candidate_is_written_as_it_is_read(text):
    assert str(Candidate.parse(text)) == text


@pytest.mark.parametrize("text", ["lifo", "hrrn:x", "hrrn:-1", "hrrn@false"])
def test_an_unknown_policy_is_an_error(text):
    with pytest.raises(ValueError, match=r"policy|alpha"):
        Candidate.parse(text)


def test_steady_runs_get_enough_requests_for_their_fleet():
    one = WORKLOAD.saturation()
    assert steady_requests(WORKLOAD, 2) >= 1500
    assert steady_requests(WORKLOAD, 8) == 4 * steady_requests(WORKLOAD, 2)
    assert steady_requests(WORKLOAD, 2) / (2 * one.req_per_s) >= 20 * one.service_s


def test_larger_fleets_are_tried_around_saturation():
    assert loads_by_engines(Grid()) == {2: {0.7, 1.0, 1.2, 1.5}, 8: {0.7, 1.2}, 32: {1.2}}


def test_full_tries_every_load_on_every_fleet():
    assert set(map(len, loads_by_engines(Grid(full=True)).values())) == {4}


@pytest.mark.parametrize("loads", [(0.5,), (1.5,), (1.0,)])
def test_every_fleet_gets_a_load(loads):
    assert set(loads_by_engines(Grid(loads=loads))) == {2, 8, 32}


def test_every_policy_is_compared_with_direct_dispatch_of_the_same_arrivals():
    wanted = Grid(policies=("hrrn", "fcfs"))
    assert [str(candidate) for candidate in wanted.candidates] == ["direct", "hrrn", "fcfs"]
    conditions = {}
    for trial in tried(wanted, Section.LOADS):
        conditions.setdefault(trial.conditions, []).append(str(trial.candidate))
    assert set(map(tuple, conditions.values())) == {("direct", "hrrn", "fcfs")}


def test_the_mean_load_of_the_burst_is_below_saturation():
    assert {(trial.conditions.pattern, trial.conditions.load) for trial in tried(Grid(), Section.BURST)} == {
        (Pattern.BURST, 0.7)
    }


def test_each_fault_changes_one_thing():
    trials = tried(Grid(), Section.FAULTS)
    assert [str(trial.candidate) for trial in trials] == ["direct"] + 6 * ["hrrn"]
    assert len({trial.variant for trial in trials}) == 7
    assert len({trial.conditions for trial in trials}) == 7


def test_overload_lasts_ten_minutes_at_ten_times_what_the_engines_sustain():
    (trial,) = tried(Grid(), Section.OVERLOAD)
    per_s = 2 * WORKLOAD.saturation().req_per_s
    assert trial.conditions.load == 10.0
    assert trial.conditions.count / (10.0 * per_s) == pytest.approx(600.0, rel=0.01)
    assert trial.conditions.max_queue == pytest.approx(60 * per_s, rel=0.01)


def test_quick_takes_half_the_requests_and_no_faults():
    quick, whole = Grid(engines=(2,), loads=(1.2,), quick=True), Grid(engines=(2,), loads=(1.2,))
    assert {trial.section for trial in quick.trials(WORKLOAD)} == {Section.LOADS, Section.BURST}
    assert 2 * tried(quick, Section.LOADS)[0].conditions.count == tried(whole, Section.LOADS)[0].conditions.count


def test_faults_are_tried_with_a_requested_policy_that_has_a_queue():
    assert tried(Grid(policies=("direct", "sjf@true", "fcfs")), Section.FAULTS)[1].candidate == Candidate.parse("fcfs")


def test_pieces_hold_every_trial_and_the_largest_fleets_come_first():
    trials = Grid().trials(WORKLOAD)
    pieces = chunks(trials)
    assert sorted(map(id, trials)) == sorted(id(trial) for piece in pieces for trial in piece)
    sizes = [{trial.conditions.engines for trial in piece} for piece in pieces]
    assert sizes == [{32}] * 8 + [{8}] * 16 + [{2}] * (len(pieces) - 24)
    assert max(map(len, pieces)) == 4
