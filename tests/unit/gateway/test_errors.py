import inspect

import pytest

from gateway import errors
from gateway.errors import (
    BackendError,
    BackendRefused,
    GatewayError,
    QueueFull,
    RequestEvicted,
    RequestRejected,
    Unauthorized,
)

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
LEAVES = [kind for kind in TREE if issubclass(kind, GatewayError) and vars(kind).get("code") is not None]
"""Errors with a code of their own. A subclass without one looks to the client like its parent."""


def made(kind):
    if kind is QueueFull:
        return kind("why", retry_after_s=3.0)
    return kind("why")


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_has_a_status_a_type_and_a_code(kind):
    error = made(kind)
    assert isinstance(error, RequestRejected | RequestEvicted | BackendError)
    assert 400 <= error.status < 600
    assert error.type.endswith("_error")
    assert (str(error), error.message) == ("why", "why")


def test_no_two_errors_share_a_code():
    codes = [kind.code for kind in LEAVES]
    assert len(codes) == len(set(codes)) > 15


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_drawn_in_the_tree(kind):
    assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize("kind", LEAVES)
def test_the_tree_tells_each_status(kind):
    assert f"{kind.__name__} {kind.status}" in errors.__doc__


def test_a_parameter_is_named_where_there_is_one():
    assert GatewayError("why").param is None
    assert GatewayError("why", param="n").param == "n"


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (2.6, "3"), (120.0, "120")])
def test_retry_after_is_in_whole_seconds(seconds, header):
    assert QueueFull("full", retry_after_s=seconds).headers == {"retry-after": header}


def test_missing_key_has_a_www_authenticate_header():
    assert Unauthorized("who?").headers == {"www-authenticate": "Bearer"}


def test_error_of_an_engine_keeps_its_fields():
    error = BackendRefused("no", status=418, type="teapot", param="x", code=7)
    assert (error.status, error.type, error.param, error.code, error.headers) == (418, "teapot", "x", 7, {})
    assert (BackendRefused("no", status=400, type="y").status, BackendRefused.status) == (400, 500)
