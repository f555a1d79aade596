"""The examples in the docstrings of every module do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import List

import pytest

import cwmp

pytestmark = pytest.mark.core


def module_names() -> List[str]:
    """Every module of the package, but the one that runs when it is imported."""
    found = [info.name for info in pkgutil.walk_packages(cwmp.__path__, "cwmp.")]
    return ["cwmp", *sorted(name for name in found if not name.endswith("__main__"))]


def test_the_examples_of_all_modules_are_true() -> None:
    flags = doctest.ELLIPSIS | doctest.FAIL_FAST
    attempted = 0
    for name in module_names():
        result = doctest.testmod(importlib.import_module(name), optionflags=flags)
        assert result.failed == 0, f"an example in {name} is wrong (see the output above)"
        attempted += result.attempted
    assert attempted > 20, "the examples were not found"
