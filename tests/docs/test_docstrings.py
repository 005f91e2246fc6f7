"""Examples in the docstrings of public names run (doctest)."""

import doctest
import inspect

import pytest
import torch

import ssl_fast
from ssl_fast import functional

NAMES = [f"ssl_fast.{name}" for name in ssl_fast.__all__] + [f"functional.{name}" for name in functional.__all__]


def imported() -> dict[str, object]:
    """What an example need not import: torch and the public names."""
    return {**vars(ssl_fast), "torch": torch, "ssl_fast": ssl_fast}


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = []
    for name in NAMES:
        module, _, attribute = name.rpartition(".")
        thing = getattr(ssl_fast if module == "ssl_fast" else functional, attribute)
        if not inspect.ismodule(thing):
            found += finder.find(thing, name, module=False)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_of_docstrings_run(example):
    example.globs = imported()
    runner = doctest.DebugRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    try:
        runner.run(example)
    except doctest.UnexpectedException as failure:
        raise failure.exc_info[1] from None  # a missing library skips the test (conftest.py)
    except doctest.DocTestFailure as failure:
        pytest.fail(f"expected {failure.example.want!r}, got {failure.got!r} from {failure.example.source}")


def test_there_are_examples():
    assert len(examples()) >= len(functional.__all__) + 10
