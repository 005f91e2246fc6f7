"""The processes of a stage: ended at a deadline, started again after a crash. Nothing but the standard library."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .journal import Journal

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds that a process has for its last words after the interrupt
FINISHED = (0, 1, 5)  # exit codes of a run that came to its end: well, with failures, with nothing to do (pytest)
TICK = 0.1


class Deadline:
    """clock: seconds, as time.monotonic; a fake one in tests."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.end = clock, clock() + seconds

    def left(self) -> float:
        return max(0.0, self.end - self.clock())


class Worker:
    """One process; with a journal it is started again after a crash and goes on with the next row.

    code: its exit code once it has come to its end; None before, and where it was stopped.
    """

    def __init__(self, command: list[str], log: IO, environment: dict[str, str], journal: Journal | None = None):
        self.command, self.log, self.environment, self.journal = command, log, environment, journal
        self.code: int | None = None
        self.start()

    def start(self) -> None:
        self.rows = len(self.journal.keys()) if self.journal else 0
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=self.environment,
            start_new_session=True,  # a group, to be ended with all that it starts
        )

    def running(self) -> bool:
        """Whether it goes on, looked at now and then."""
        if self.code is not None:
            return False
        code = self.process.poll()
        if code is None:
            return True
        self._signal(signal.SIGKILL)  # what it started and left
        died = self.journal is not None and self.journal.bury(f"the process ended here, with exit status {code}")
        progress = self.journal is not None and len(self.journal.keys()) > self.rows
        if progress and (died or code not in FINISHED):
            self.start()
            return True
        self.code = code
        return False

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self._signal(signal.SIGINT)

    def end(self, seconds: float) -> None:
        """Ends it, after so many seconds by what cannot be refused."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self._signal(signal.SIGKILL)  # what it started and left
        if self.journal is not None and self.code is None:
            self.journal.bury("its time was up", "unfinished")

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def finish(workers: list[Worker], deadline: Deadline, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Waits for all; False where the deadline came first. None of them runs on, whatever happens here."""
    try:
        while sum(worker.running() for worker in workers):  # each is looked at
            if not deadline.left():
                return False
            sleep(TICK)
        return True
    finally:
        for worker in workers:
            worker.interrupt()
        grace = Deadline(GRACE)
        for worker in workers:
            worker.end(grace.left())
