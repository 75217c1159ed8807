import pytest

from backends.simulator.config import EngineConfig
from bench.continuous.grid import Grid, Section, chunks
from gateway.simulation.experiment import SimulatedPolicy, Workload
from gateway.simulation.times import Pattern
from tests.unit.gateway.simulation.past_rows import rows


def workload():
    return Workload("w", rows(100), EngineConfig(kv_tokens=4096, max_num_seqs=20))


def tried(grid, section):
    return [trial for trial in grid.trials(workload()) if trial.section is section]


def loads_by_engines(grid):
    found = {}
    for trial in tried(grid, Section.LOADS):
        found.setdefault(trial.conditions.engines, set()).add(trial.conditions.load)
    return found


def test_larger_fleets_are_tried_where_it_matters():
    assert loads_by_engines(Grid()) == {2: {0.7, 1.0, 1.2, 1.5}, 8: {0.7, 1.2}, 32: {1.2}}


def test_all_loads_on_all_fleets_if_asked_for():
    assert set(map(len, loads_by_engines(Grid(full=True)).values())) == {4}


@pytest.mark.parametrize("loads", [(0.5,), (1.5,), (1.0,)])
def test_no_fleet_goes_without_a_load(loads):
    assert set(loads_by_engines(Grid(loads=loads))) == {2, 8, 32}


def test_everybody_is_compared_with_direct_dispatch_on_the_same_arrivals():
    grid = Grid(policies=("hrrn", "fcfs"))
    assert [str(contender) for contender in grid.contenders] == ["direct", "hrrn", "fcfs"]
    conditions = {}
    for trial in tried(grid, Section.LOADS):
        conditions.setdefault(trial.conditions, []).append(str(trial.contender))
    assert set(map(tuple, conditions.values())) == {("direct", "hrrn", "fcfs")}


def test_the_burst_comes_below_saturation_in_the_mean():
    assert {(trial.conditions.pattern, trial.conditions.load) for trial in tried(Grid(), Section.BURST)} == {
        (Pattern.BURST, 0.7)
    }


def test_faults_take_one_thing_away_each():
    trials = tried(Grid(), Section.FAULTS)
    assert [str(trial.contender) for trial in trials] == ["direct"] + 6 * ["hrrn"]
    assert len({trial.variant for trial in trials}) == 7
    assert len({trial.conditions for trial in trials}) == 7


def test_overload_lasts_ten_minutes_at_ten_times_what_the_engines_can_do():
    (trial,) = tried(Grid(), Section.OVERLOAD)
    per_s = 2 * workload().saturation().req_per_s
    assert trial.conditions.load == 10.0
    assert trial.conditions.count / (10.0 * per_s) == pytest.approx(600.0, rel=0.01)
    assert trial.conditions.max_queue == pytest.approx(60 * per_s, rel=0.01)


def test_quick_is_half_as_much_of_the_steady_part():
    quick, whole = Grid(engines=(2,), loads=(1.2,), quick=True), Grid(engines=(2,), loads=(1.2,))
    assert {trial.section for trial in quick.trials(workload())} == {Section.LOADS, Section.BURST}
    assert 2 * tried(quick, Section.LOADS)[0].conditions.count == tried(whole, Section.LOADS)[0].conditions.count


def test_the_faults_are_those_of_a_queue_that_is_asked_for():
    assert tried(Grid(policies=("direct", "sjf@true", "fcfs")), Section.FAULTS)[1].contender == SimulatedPolicy("fcfs")


def test_pieces_hold_all_trials_and_the_largest_fleets_come_first():
    trials = Grid().trials(workload())
    pieces = chunks(trials)
    assert sorted(map(id, trials)) == sorted(id(trial) for piece in pieces for trial in piece)
    sizes = [{trial.conditions.engines for trial in piece} for piece in pieces]
    assert sizes == [{32}] * 8 + [{8}] * 16 + [{2}] * (len(pieces) - 24)
    assert max(map(len, pieces)) == 4
