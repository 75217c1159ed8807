import doctest
import importlib
import pkgutil

import pytest

import backends.simulator

MODULES = [module.name for module in pkgutil.walk_packages(backends.simulator.__path__, "backends.simulator.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
