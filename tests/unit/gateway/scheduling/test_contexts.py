"""A backend whose context is too small for a request is skipped while another one fits."""

from gateway.scheduling.messages import Dispatch, Drop, Returned, WaitReason
from gateway.scheduling.scheduler import AWAY_BACKOFF_S
from tests.unit.gateway.scheduling.scheduler_helpers import observed, start, submit

SMALL = observed("gpu-0", max_model_len=1000)
LARGE = observed("gpu-1", max_model_len=8000)


def backends(actions):
    return [action.backend for action in actions if isinstance(action, Dispatch)]


def test_long_request_skips_the_small_context():
    core = start(SMALL, LARGE)
    long = [submit(context_tokens=2000) for _ in range(3)]
    assert backends(core.step(long, 0.0)) == ["gpu-1"] * 3


def test_request_that_fits_nowhere_is_left_to_the_engines():
    core = start(SMALL, LARGE)
    assert len(backends(core.step([submit(context_tokens=9000)], 0.0))) == 1


def test_long_request_takes_the_small_context_when_no_other_backend_is_there():
    assert backends(start(SMALL).step([submit(context_tokens=2000)], 0.0)) == ["gpu-0"]


def test_short_requests_pass_a_long_one_that_waits_for_the_large_context():
    busy = observed("gpu-1", max_model_len=8000, max_concurrency=1)
    core = start(SMALL, busy)
    assert backends(core.step([submit("first", context_tokens=2000)], 0.0)) == ["gpu-1"]
    assert backends(core.step([submit("second", context_tokens=2000)], 1.0)) == []
    assert backends(core.step([submit("short", context_tokens=10)], 2.0)) == ["gpu-0"]
    (head, *_) = core.explain(3.0)
    assert head.reasons["gpu-0"] is WaitReason.CONTEXT


def test_waiting_long_request_takes_the_large_context_when_it_comes():
    core = start(observed("gpu-0", max_model_len=1000, healthy=False))
    core.step([submit(context_tokens=2000)], 0.0)
    assert backends(core.step([LARGE, SMALL], 1.0)) == ["gpu-1"]


def test_request_that_an_engine_refused_as_too_long_skips_all_contexts_of_that_size():
    core = start(SMALL, observed("gpu-2", max_model_len=1000), submit("r", context_tokens=1))
    core.step([LARGE], 1.0)
    assert backends(core.step([Returned("r", full=False, too_long=True)], 2.0)) == ["gpu-1"]


def test_request_that_the_last_backend_took_no_connection_for_waits_for_it():
    core = start(SMALL, submit("r"))
    assert core.step([Returned("r", full=False, away=True)], 1.0) == []
    assert core.step([observed("gpu-0", healthy=False)], 1.5) == []
    assert backends(core.step([SMALL], 1.0 + AWAY_BACKOFF_S)) == ["gpu-0"]


def test_request_that_a_backend_took_no_connection_for_goes_to_another_one():
    core = start(SMALL, submit("r"))
    core.step([observed("gpu-1")], 0.5)
    assert backends(core.step([Returned("r", full=False, away=True)], 1.0)) == ["gpu-1"]


def test_request_that_the_last_backend_failed_is_dropped():
    core = start(SMALL, submit("r"))
    assert [type(action) for action in core.step([Returned("r", full=False)], 1.0)] == [Drop]
