"""Files named test_*_interpreted.py run in a process of their own, with TRITON_INTERPRET=1.

Triton decides when it is first imported whether kernels are interpreted, for the whole process. Set
in the common process, the variable would take the compiled kernels from the tests that need them
(test_ahead_of_time.py, the gpu tests, torch.compile on a GPU); set later, it would do nothing. To choose
single tests: TRITON_INTERPRET=1 python -m pytest tests/kernels/test_enqueue_interpreted.py -k ...
"""

import importlib.util
import os
import subprocess
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

MANY = 12  # cases of a test; each takes about a second in the interpreter


def _run(config, path) -> subprocess.CompletedProcess:
    # No cache: two processes would write the common one.
    options = ["-q", "-p", "no:cacheprovider", "-m", config.option.markexpr, "--durations=5"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        cwd=config.rootpath,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


class InterpretedRun(pytest.Item):
    """One run of pytest over one file, under the interpreter."""

    def runtest(self):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed")
        answer = self.started.result() if hasattr(self, "started") else _run(self.config, self.path)
        if answer.returncode != 0:
            # A wrong address ends the process: then the status is the signal, negative.
            pytest.fail(f"exit status {answer.returncode}\n{answer.stdout}", pytrace=False)
        self.add_report_section("call", "stdout", answer.stdout)

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem} with TRITON_INTERPRET=1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Their results are asked for last: the tests of this process run meanwhile.

    Inside such a run, of a test with many cases a sixth is fast, chosen by the hash of its name: across all parameters.
    """
    items.sort(key=lambda item: isinstance(item, InterpretedRun))
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    cases = Counter(item.function for item in items)
    for item in items:
        if cases[item.function] > MANY and zlib.crc32(item.name.encode()) % 6:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session):
    """All runs are started at once, one a core, beside the tests of this process; by none of several workers."""
    if hasattr(session.config, "workerinput"):  # of pytest-xdist: each collects all items and runs some
        return
    runs = [item for item in session.items if isinstance(item, InterpretedRun)]
    if runs and importlib.util.find_spec("triton") is not None and not session.config.option.collectonly:
        pool = ThreadPoolExecutor(os.cpu_count())
        for run in runs:
            run.started = pool.submit(_run, session.config, run.path)
        pool.shutdown(wait=False)


class InterpretedFile(pytest.File):
    def collect(self):
        run = InterpretedRun.from_parent(self, name="TRITON_INTERPRET=1")
        run.add_marker(pytest.mark.timeout(1500))
        yield run


def pytest_pycollect_makemodule(module_path, parent):
    if module_path.stem.endswith("_interpreted") and os.environ.get("TRITON_INTERPRET") != "1":
        return InterpretedFile.from_parent(parent, path=module_path)
    return None
