"""Docstrings of public names: their examples run (doctest), and the arguments that they describe are there."""

import doctest
import inspect
import re

import pytest
import torch

import ssl_fast
from ssl_fast import functional

NAMES = [f"ssl_fast.{name}" for name in ssl_fast.__all__] + [f"functional.{name}" for name in functional.__all__]


def imported() -> dict[str, object]:
    """What an example need not import: torch and the public names."""
    return {**vars(ssl_fast), "torch": torch, "ssl_fast": ssl_fast}


def public() -> dict[str, object]:
    """Functions and classes by their names."""
    homes = {"ssl_fast": ssl_fast, "functional": functional}
    things = {name: getattr(homes[name.partition(".")[0]], name.partition(".")[2]) for name in NAMES}
    return {name: thing for name, thing in things.items() if not inspect.ismodule(thing)}


def described(thing: object) -> set[str]:
    """The arguments of a docstring's section Args, whose lines may name several: "z1, z2: (N, D)"."""
    section = re.search(r"^Args:\n(.*?)(?:^\S|\Z)", inspect.getdoc(thing) or "", re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^ {4}([\w*]+(?:, [\w*]+)*)(?: \(.*?\))?:", section[1], re.MULTILINE) if section else []
    return {name.strip(" *") for line in lines for name in line.split(",")}


@pytest.mark.parametrize("name", public())
def test_arguments_of_docstrings_exist(name):
    thing = public()[name]
    if isinstance(thing, type) and issubclass(thing, tuple):  # the fields of a NamedTuple
        taken = set(thing._fields)
    else:
        taken = set(inspect.signature(thing).parameters)
    assert described(thing) <= taken


def test_arguments_are_found():
    assert {"z1", "z2", "temperature", "group"} <= described(functional.nt_xent)


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = [test for name, thing in public().items() for test in finder.find(thing, name, module=False)]
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
