"""Files beside the code that repeat a number of it: each is held to where the number comes from."""

import re
from pathlib import Path

import pytest

import ssl_fast

ROOT = Path(__file__).parents[2]


def found(path: str, pattern: str) -> list[str]:
    return re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE)


def test_the_citation_is_of_this_version():
    assert found("CITATION.cff", r"^version: (.+)$") == [ssl_fast.__version__]


@pytest.mark.parametrize(("tool", "hook"), [("ruff", "ruff-pre-commit"), ("clang-format", "mirrors-clang-format")])
def test_pre_commit_formats_as_make_lint_does(tool, hook):
    pinned = found("pyproject.toml", rf'"{tool}==([\d.]+)"')
    assert len(pinned) == 1
    assert found(".pre-commit-config.yaml", rf"{hook}\n +rev: v([\d.]+)") == pinned


def test_workflows_call_targets_that_exist():
    targets = set(found("Makefile", r"^([a-z-]+):"))
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        called = set(re.findall(r"run: make ([a-z-]+)", workflow.read_text()))
        assert called
        assert called <= targets, workflow.name
