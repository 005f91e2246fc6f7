"""The compiled library: kept by the contents of its sources, made once by any number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .requirements import needs_simulator
from .simulator import build
from .simulator.instructions import FIELDS_32, FIELDS_64, cpp_header
from .simulator.program import Program
from .simulator.reports import ReportKind

pytestmark = needs_simulator
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_processes_that_build_at_once(tmp_path):
    command = [sys.executable, "-c", "from tests.ptx.simulator import build; print(build.library()._name)"]
    environment = {**os.environ, "SSL_FAST_PTX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = set()
    for process in running:
        answer, errors = process.communicate()
        assert process.returncode == 0, errors
        names.add(answer.strip())
    (library,) = tmp_path.iterdir()  # nothing else is left behind
    assert names == {str(library)}


def test_the_header_is_of_the_tables():
    header = cpp_header([kind.name for kind in ReportKind])
    for name in (*FIELDS_32, *FIELDS_64):
        assert f" {name};" in header
    assert "REPORT_NEVER_WAITED" in header
    assert Program("empty").rows.dtype.itemsize == 4 * len(FIELDS_32) + 8 * len(FIELDS_64)
    assert len(FIELDS_32) % 2 == 0  # else C++ would pad


def test_where_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_FAST_PTX_CACHE", str(tmp_path))
    assert build.cache() == tmp_path
    monkeypatch.delenv("SSL_FAST_PTX_CACHE")
    assert build.cache() == ROOT / "build" / "ptx"
