"""Files named test_*_interpreted.py need a process with TRITON_INTERPRET=1, where kernels are interpreted on the CPU.

    TRITON_INTERPRET=1 python -m pytest tests/kernels -m "interpreted and not slow" -n 2

Triton decides when it is first imported whether kernels are interpreted, for the whole process. In the process of the
other tests the variable would keep those that need compiled kernels from running (test_ahead_of_time.py, tests/ptx, the
gpu tests), so there these files are skipped. `make check` runs both.
"""

import importlib.util
import os
import zlib
from collections import Counter

import pytest

MANY = 12  # cases of a test; each takes about a second in the interpreter


def _why_not() -> str:
    """Why this process cannot run the interpreted tests; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "needs TRITON_INTERPRET=1 (make check runs these files in a process of their own)"
    return ""


WHY_NOT = _why_not()


class SkippedFile(pytest.File):
    """A file whose tests this process cannot run: one item in their place says why."""

    def collect(self):
        item = SkippedTests.from_parent(self, name="interpreted")
        item.add_marker(pytest.mark.interpreted)
        yield item


class SkippedTests(pytest.Item):
    def runtest(self):
        pytest.skip(WHY_NOT)

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem}: {WHY_NOT}"


def is_interpreted(path) -> bool:
    return path.stem.endswith("_interpreted")


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedFile.from_parent(parent, path=module_path) if is_interpreted(module_path) and WHY_NOT else None


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by markers
def pytest_collection_modifyitems(items):
    """Marks the interpreted tests. Of a test with many cases only a sixth is fast.

    The hash of its name says whether a case is fast, so that the fast cases are spread across all parameters.
    """
    if WHY_NOT:
        return
    cases = Counter(item.function for item in items)
    for item in items:
        if is_interpreted(item.path):
            item.add_marker(pytest.mark.interpreted)
        if cases[item.function] > MANY and zlib.crc32(item.name.encode()) % 6:
            item.add_marker(pytest.mark.slow)
