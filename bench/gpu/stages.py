"""One stage after the other until the time is up, and a report from what there is after each of them.

Nothing but the standard library: a stage may fail as it likes.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import markdown
from .journal import BAD, Journal, read
from .processes import GRACE, ROOT, Deadline, Worker, finish

KEPT = 3 + GRACE  # seconds left for the end of the last stage and for the report
LEAST = 3.0  # with less than this left a stage is not begun
KEPT_LOG = 20_000  # bytes of a stage's output, its end


@dataclass(frozen=True)
class Stage:
    """limit: seconds at most. rows: the file of its journal, "" where it has none. processes: that share its work.

    needs: a program without which it is left out. essential: without it no other stage makes sense.
    correctness: what fails here is wrong, and the exit code says so. open_end: it need not come to its end.
    """

    name: str
    command: list[str]
    limit: float
    rows: str = ""
    processes: int = 1
    needs: str = ""
    essential: bool = False
    correctness: bool = True
    open_end: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """result: "passed", "failed", "skipped" or "stopped" at its limit."""

    name: str
    result: str
    why: str
    seconds: float
    wrong: bool


def journal_command(stage: Stage, folder: Path, scratch: Path, index: int) -> tuple[list[str], Journal]:
    """The command of one of a stage's processes, with the options that say where its rows go."""
    journal = Journal(folder / stage.rows, scratch / f"{stage.name}-{index}")
    options = [f"--journal={journal.path}", f"--marker={journal.marker}", f"--stage={stage.name}"]
    return [*stage.command, *options, f"--share={index}/{stage.processes}"], journal


def run(stage: Stage, folder: Path, deadline: Deadline, start: Callable[..., Worker] = Worker, sleep=time.sleep):
    """Runs a stage within its limit and what is left of the time. Returns its Outcome."""
    begun = deadline.clock()
    if stage.needs and shutil.which(stage.needs) is None:
        return Outcome(stage.name, "skipped", f"{stage.needs} is not installed", 0.0, False)
    seconds = min(stage.limit, deadline.left() - KEPT)
    if seconds < LEAST:
        return Outcome(stage.name, "skipped", "no time was left", 0.0, False)
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch) / "log", "w+b") as log:
        environment = {**os.environ, **stage.environment, "BENCH_SECONDS": f"{seconds:.0f}"}
        workers, before = [], read(folder / stage.rows) if stage.rows else []
        for index in range(stage.processes):
            command, journal = stage.command, None
            if stage.rows:
                command, journal = journal_command(stage, folder, Path(scratch), index)
            workers.append(start(command, log, environment, journal))
        ended = finish(workers, Deadline(seconds, deadline.clock), sleep)
        keep_log(folder / "log.txt", stage.name, log)
    rows = read(folder / stage.rows)[len(before) :] if stage.rows else []
    return judge(stage, [worker.code for worker in workers], ended, rows, deadline.clock() - begun)


def judge(stage: Stage, codes: list[int | None], ended: bool, rows: list[dict], seconds: float) -> Outcome:
    bad = sum(row["outcome"] in BAD for row in rows)
    failures = [str(code) for code in codes if code not in (None, 0, 5)]
    why = []
    if rows:
        why.append(", ".join(f"{count} {name}" for name, count in markdown.tally(rows).items()))
    if failures and not bad:
        why.append(f"exit status {' '.join(failures)}")
    if not ended:
        why.append(f"stopped after {seconds:.0f} s")
    failed = bool(bad or failures) or not (ended or stage.open_end)
    result = "failed" if failed else "passed" if ended else "stopped"
    return Outcome(stage.name, result, "; ".join(why), round(seconds, 1), failed and stage.correctness)


def keep_log(path: Path, name: str, log) -> None:
    log.seek(max(0, log.seek(0, os.SEEK_END) - KEPT_LOG))
    with open(path, "ab") as file:
        file.write(f"\n===== {name} =====\n".encode() + log.read())


def run_all(stages: list[Stage], folder: Path, deadline: Deadline, run: Callable[..., Outcome] = run) -> int:
    """All stages; the exit code: 1 where something is wrong, 2 where an essential stage failed."""
    journal, code = Journal(folder / "stages.jsonl", folder / "running"), 0
    for stage in stages:
        journal.begin(stage.name)
        markdown.write(folder)  # names the stage, should this process be killed in it
        outcome = run(stage, folder, deadline)
        row = {"outcome": outcome.result, "why": outcome.why, "seconds": outcome.seconds, "wrong": outcome.wrong}
        journal.end({"key": stage.name, **row})
        print(f"{stage.name:12} {outcome.result:8} {outcome.seconds:6.1f} s  {outcome.why}", flush=True)
        code = max(code, int(outcome.wrong))
        markdown.write(folder)
        if stage.essential and outcome.result != "passed":
            print(f"Without {stage.name} the other stages make no sense; its output is in {folder / 'log.txt'}.")
            return 2
    return code


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def device() -> tuple[str, int]:
    """The first GPU's name and its memory in bytes, as the driver says; "gpu" and 0 where it says nothing."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
        name, _, mebibytes = answer.splitlines()[0].rpartition(",")
        return name.strip(), int(mebibytes) << 20
    except (OSError, IndexError, ValueError, subprocess.TimeoutExpired):
        return "gpu", 0


def default_folder(name: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return ROOT / "bench" / "results" / f"{datetime.date.today()}-{name}"


def clear(folder: Path) -> None:
    """Makes the folder, without the files of an earlier run: rows are appended."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*markdown.FILES, "report.md", "log.txt", "running"):
        (folder / name).unlink(missing_ok=True)
