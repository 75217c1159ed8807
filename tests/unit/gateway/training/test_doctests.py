import doctest
import importlib
import pkgutil

import pytest

import gateway.training

MODULES = [module.name for module in pkgutil.walk_packages(gateway.training.__path__, "gateway.training.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
