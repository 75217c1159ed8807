import pytest

from gateway.training.schedule import RETRY_S, Cadence, Situation, reason_to_train

CADENCE = Cadence(every_s=3600.0, after_rows=10_000, min_rows=1000)


def situation(**changed) -> Situation:
    quiet = {"since_training_s": 60.0, "since_attempt_s": None, "failures": 0, "new_rows": 0, "drifted": False}
    return Situation(**(quiet | changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"since_training_s": None, "new_rows": 999}, None),
        ({"since_training_s": None, "new_rows": 1000}, "first"),
        ({"new_rows": 9_999}, None),
        ({"new_rows": 10_000}, "rows"),
        ({"since_training_s": 3600.0, "new_rows": 99}, None),
        ({"since_training_s": 3600.0, "new_rows": 100}, "time"),
        ({"drifted": True, "new_rows": 99}, None),
        ({"drifted": True, "new_rows": 100}, "drift"),
    ],
)
def test_training_is_due_by_time_rows_and_drift(changed, expected):
    assert reason_to_train(CADENCE, situation(**changed)) == expected


@pytest.mark.parametrize(("failures", "wait_s"), [(1, RETRY_S), (2, 2 * RETRY_S), (3, 4 * RETRY_S), (500, 3600.0)])
def test_failures_are_retried_ever_later(failures, wait_s):
    due = {"new_rows": 10_000, "failures": failures}
    assert reason_to_train(CADENCE, situation(**due, since_attempt_s=wait_s - 1)) is None
    assert reason_to_train(CADENCE, situation(**due, since_attempt_s=wait_s)) == "rows"
