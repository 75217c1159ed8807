import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["anchor", "fit", "padded", "summary"])
def test_examples_in_docstrings_hold(name):
    results = doctest.testmod(importlib.import_module(f"bench.reality.{name}"))
    assert results.attempted
    assert not results.failed
