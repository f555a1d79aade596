"""The examples in the docstrings do what they say, and the tests that the README names exist."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from typing import List

import pytest

import cwmp

pytestmark = pytest.mark.core

TESTS = Path(__file__).resolve().parents[1]


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


def test_the_readme_names_tests_that_exist() -> None:
    """Of every fault in its table."""
    named = re.findall(r"`(\w+/\w+\.py)::(\w+)`", (TESTS.parent / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (TESTS / path).read_text(encoding="utf-8"), f"{path} has no {name}"
