"""A plugin of pytest that appends each test's result to a journal: `pytest -p bench.gpu.pytest_journal --journal FILE`.

Tests that the file already has are left out, so that a run goes on after a crash. It ends where a test has left the
device unusable: a new process gets a new context.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import zlib
from pathlib import Path

import pytest

from bench.gpu.journal import Journal

# After these every call of CUDA fails in this process.
LOST = (
    "illegal memory access", "unspecified launch failure", "device-side assert", "misaligned address",
    "illegal instruction", "launch timed out", "uncorrectable",
)  # fmt: skip
KEPT_CHARACTERS = 1500  # of a failure's text, its end
MOST_CACHED = 4 << 30  # bytes of freed GPU memory that a test may leave to the next; other processes need it


def device_is_lost(message: str) -> bool:
    return any(words in message for words in LOST)


def pytest_addoption(parser):
    group = parser.getgroup("journal")
    group.addoption("--journal", type=Path, required=True, help="the file that results are appended to")
    group.addoption("--marker", type=Path, required=True, help="holds the test that is running")
    group.addoption("--stage", default="tests", help="stands in every row")
    group.addoption("--share", default="0/1", help="i/n: the i-th of n processes that share the tests")
    group.addoption("--seconds-each", type=float, default=120, help="after which a test ends the process")


def pytest_configure(config):
    config.pluginmanager.register(Recorder(config), "journal")


class Recorder:
    def __init__(self, config):
        self.journal = Journal(config.getoption("--journal"), config.getoption("--marker"))
        self.stage, self.seconds = config.getoption("--stage"), config.getoption("--seconds-each")
        self.share, self.shares = map(int, config.getoption("--share").split("/"))
        self.stderr = os.dup(sys.stderr.fileno())  # pytest puts a file of its own there while a test runs
        self.reports = []

    def pytest_sessionstart(self, session):
        self.session = session

    def pytest_collectreport(self, report):
        """A module that is skipped or cannot be imported."""
        if not report.passed and self.share == 0:
            message = report.longrepr[2] if report.skipped else report.longreprtext
            self._write(report.nodeid, report.outcome, 0.0, message)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Keeps this process's share of the tests, those of test_*_gpu.py first, for only a device can run them.

        Within each part the order is that of a hash of the names: the same in every run, and a run that is cut off
        has seen some tests of every kind.
        """
        done = self.journal.keys()
        number = {item.nodeid: zlib.crc32(item.nodeid.encode()) for item in items}
        mine = [item for item in items if number[item.nodeid] % self.shares == self.share and item.nodeid not in done]
        mine.sort(key=lambda item: (not item.path.stem.endswith("_gpu"), number[item.nodeid]))
        config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
        items[:] = mine

    def pytest_runtest_logstart(self, nodeid):
        self.reports = []
        self.journal.begin(nodeid)
        # A watchdog in C: no signal reaches Python while a call waits for a kernel that never ends.
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.stderr)

    def pytest_runtest_logreport(self, report):
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid):
        faulthandler.cancel_dump_traceback_later()
        failed = next((report for report in self.reports if report.failed), None)
        skipped = next((report for report in self.reports if report.skipped), None)
        seconds = sum(report.duration for report in self.reports)
        if failed is not None:
            message = failed.longreprtext
            self._write(nodeid, "failed", seconds, message)
            if device_is_lost(message):
                self.session.shouldstop = "the device is lost to this process"
        elif skipped is not None:
            self._write(nodeid, "skipped", seconds, str(skipped.longrepr[-1]))
        else:
            self._write(nodeid, "passed", seconds, "")
        if "torch" in sys.modules and (torch := sys.modules["torch"]).cuda.is_initialized():
            self._release(torch)

    def _release(self, torch):
        if torch.cuda.memory_reserved() > MOST_CACHED and self.session.shouldstop is False:
            torch.cuda.empty_cache()

    def _write(self, nodeid, outcome, seconds, message):
        row = {"stage": self.stage, "key": nodeid, "outcome": outcome, "seconds": round(seconds, 3)}
        self.journal.end(row | ({"message": message[-KEPT_CHARACTERS:]} if message else {}))
