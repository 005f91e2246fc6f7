"""The GPU report without a GPU: rows outlive what ends a process, the time is kept, what is missing is said."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench.gpu import markdown, plan, processes, stages, times
from bench.gpu.__main__ import SECONDS
from bench.gpu.journal import Journal, read
from bench.gpu.processes import ROOT, Deadline, Worker
from bench.gpu.stages import Outcome, Stage
from bench.gpu.work import MissingLibraryError, Work
from ssl_fast.tools.build import compiler


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "rows.jsonl", tmp_path / "marker")


def raises(message):
    def measure():
        raise RuntimeError(message)

    return measure


def test_rows_are_written_one_by_one_and_a_failure_is_one_of_them(journal):
    seen = []

    def measure():
        seen.append([row["key"] for row in journal.rows()])
        return {"milliseconds": {"ssl_fast": 1.5}}

    works = [
        Work({"work": "a"}, measure),
        Work({"work": "b", "N": 4}, raises("no\nluck")),
        Work({"work": "c"}, measure),
    ]
    assert times.measure(works, journal) == 1
    assert seen == [[], ["a", "b N=4"]]
    first, second, third = journal.rows()
    assert [row["outcome"] for row in (first, second, third)] == ["measured", "failed", "measured"]
    assert second["message"] == "RuntimeError: no"
    assert second["N"] == 4
    for row in (first, second, third):
        assert {"device", "torch", "triton", "commit", "date"} <= set(row)
    # Another run has nothing left to do.
    times.measure(works, journal)
    assert len(journal.rows()) == 3


def test_ours_that_fails_beside_peers_that_run_is_a_failure(journal):
    row = {"milliseconds": {"eager": 1.0}, "failed": {"ssl_fast": "OutOfResources: shared memory"}}
    assert times.measure([Work({"work": "a"}, lambda: row)], journal) == 1
    (written,) = journal.rows()
    assert written["outcome"] == "failed"
    assert "OutOfResources: shared memory" in written["message"]
    assert written["milliseconds"] == {"eager": 1.0}


def test_a_row_whose_library_is_missing_is_a_word(journal):
    def measure():
        raise MissingLibraryError("torchvision is not installed")

    assert times.measure([Work({"work": "step"}, measure)], journal) == 0
    (row,) = journal.rows()
    assert (row["outcome"], row["message"]) == ("skipped", "torchvision is not installed")
    markdown.write(journal.path.parent)
    assert "| **skipped** | | torchvision is not installed |" in (journal.path.parent / "report.md").read_text()


def test_a_lost_device_ends_the_process_after_its_row(journal):
    works = [Work({"work": "a"}, raises("CUDA error: an illegal memory access was encountered"))]
    works.append(Work({"work": "b"}, dict))
    assert times.measure(works, journal) == times.AGAIN
    assert [row["key"] for row in journal.rows()] == ["a"]
    assert times.measure(works, journal) == 0
    assert [row["key"] for row in journal.rows()] == ["a", "b"]


def test_no_row_is_begun_without_time(journal):
    left = iter([10.0, 1.0])
    times.measure([Work({"work": name}, dict) for name in "ab"], journal, lambda: next(left))
    assert [row["key"] for row in journal.rows()] == ["a"]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class FakeWorker:
    """Takes as many seconds as its command says, and 5 to end."""

    def __init__(self, clock, command):
        self.clock, self.until, self.code = clock, clock.now + float(command[0]), None

    def running(self):
        if self.clock.now >= self.until:
            self.code = 0
        return self.code is None

    def interrupt(self):
        if self.code is None:
            self.clock.now += processes.GRACE

    def end(self, seconds):
        pass


def test_the_deadline_is_kept(tmp_path):
    """Every stage has its limit, or what is left of the whole; where that is little, it is not begun."""
    clock = Clock()
    begun = []

    def start(command, log, environment, journal):
        begun.append((command[0], round(clock.now), environment["BENCH_SECONDS"]))
        return FakeWorker(clock, command)

    def run(stage, folder, deadline):
        return stages.run(stage, folder, deadline, start, clock.sleep)

    long, short = {"limit": 60.0, "open_end": True}, {"limit": 60.0}
    several = [Stage("a", ["20"], **short), Stage("b", ["999"], **long), Stage("c", ["999"], **long)]
    several.append(Stage("d", ["1"], **short))
    code = stages.run_all(several, tmp_path, Deadline(100.0, clock), run)
    assert clock.now <= 100.0
    # 20 + 60 + 5 to end b: 15 are left, of which some are kept.
    assert begun == [("20", 0, "60"), ("999", 20, "60"), ("999", 85, f"{100 - 85 - stages.KEPT:.0f}")]
    results = {row["key"]: row["outcome"] for row in read(tmp_path / "stages.jsonl")}
    assert results == {"a": "passed", "b": "stopped", "c": "stopped", "d": "skipped"}
    assert code == 0
    assert "no time was left" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("codes", "ended", "rows", "options", "result"),
    [
        ([0, 0], True, [], {}, "passed"),
        ([0, 5], True, [{"outcome": "passed"}], {}, "passed"),
        ([0, 1], True, [{"outcome": "passed"}], {}, "failed"),
        ([0], True, [{"outcome": "died"}], {}, "failed"),  # and the next process passed
        ([None], False, [], {}, "failed"),
        ([None], False, [{"outcome": "unfinished"}], {"open_end": True}, "stopped"),
        ([None], False, [{"outcome": "failed"}], {"open_end": True}, "failed"),
        ([-11], True, [], {}, "failed"),
    ],
)
def test_what_a_stage_comes_to(codes, ended, rows, options, result):
    for correctness in (True, False):
        outcome = stages.judge(Stage("x", [], 1.0, correctness=correctness, **options), codes, ended, rows, 1.0)
        assert outcome.result == result
        assert outcome.wrong == (correctness and result == "failed")


def test_the_exit_code_and_the_report_after_each_stage(tmp_path):
    reports = []

    def run(stage, folder, deadline):
        reports.append((folder / "report.md").read_text())
        return Outcome(stage.name, stage.command[0], "", 1.0, stage.command[0] == "failed")

    def code_of(*several):
        stages.clear(tmp_path)
        return stages.run_all(list(several), tmp_path, Deadline(100.0), run)

    good, bad = Stage("good", ["passed"], 1.0), Stage("bad", ["failed"], 1.0)
    assert code_of(good) == 0
    assert code_of(good, bad, good) == 1
    assert "| bad | failed |" in reports[-1]
    assert "| good | **was running" in reports[-1]
    before = len(reports)
    assert code_of(Stage("build", ["failed"], 1.0, essential=True), good) == 2
    assert len(reports) == before + 1


def test_a_missing_program_is_a_word(tmp_path):
    outcome = stages.run(Stage("memcheck", ["x"], 9.0, needs="no-such-program"), tmp_path, Deadline(100.0))
    assert (outcome.result, outcome.why) == ("skipped", "no-such-program is not installed")


SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from bench.gpu.__main__ import SECONDS
from bench.gpu.journal import Journal
options = dict(x[2:].split("=", 1) for x in sys.argv[1:])
journal = Journal(options["journal"], options["marker"])
for key in "abcd":
    if key in journal.keys():
        continue
    journal.begin(key)
    if key == "b":
        os.abort()
    if key == "d":
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
    journal.end({{"key": key, "outcome": "measured"}})
"""


@pytest.mark.long
def test_a_crash_costs_its_row_and_a_hung_process_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.1)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    stage = Stage("x", [sys.executable, str(script)], 5.0, rows="rows.jsonl", open_end=True)
    outcome = stages.run(stage, tmp_path, Deadline(100.0))
    rows = {row["key"]: row["outcome"] for row in read(tmp_path / "rows.jsonl")}
    assert rows == {"a": "measured", "b": "died", "c": "measured", "d": "unfinished"}
    assert outcome.result == "failed"
    assert "stopped after" in outcome.why


TESTS = """
import os, time
import pytest

def test_passes(): pass
def test_fails(): assert 1 + 1 == 3
@pytest.mark.skip(reason="not today")
def test_skips(): pass
def test_dies(): os.abort()
def test_hangs(): time.sleep(60)
def test_loses_the_device(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
def test_errs(nothing): pass
def test_passes_too(): pass
"""


@pytest.mark.long
def test_results_of_tests_outlive_crashes_and_hung_tests(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(textwrap.dedent(TESTS))
    stage = plan.tests("some", 60, 2, [str(tmp_path)], 2)
    outcome = stages.run(stage, tmp_path, Deadline(100.0))
    rows = {row["key"].partition("::")[2]: row for row in read(tmp_path / "tests.jsonl")}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_passes": "passed", "test_fails": "failed", "test_skips": "skipped", "test_dies": "died",
        "test_hangs": "died", "test_loses_the_device": "failed", "test_errs": "failed", "test_passes_too": "passed",
    }  # fmt: skip
    assert outcome.result == "failed"
    markdown.write(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "assert (1 + 1) == 3" in report
    assert "skipped 1: not today" in report
    assert "test_hangs" in (tmp_path / "log.txt").read_text()  # where it hung


def test_a_worker_that_cannot_begin_is_not_started_for_ever(tmp_path, journal):
    with open(tmp_path / "log", "wb") as log:
        worker = Worker([sys.executable, "-c", "raise SystemExit(4)"], log, {}, journal)
        assert processes.finish([worker], Deadline(30.0))
    assert worker.code == 4


def test_a_report_of_nothing_and_of_half_lines(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"key": "a", "outcome": "died", "message": "x|y"}\n{"key": "b", "outc')
    markdown.write(tmp_path)
    assert "x\\|y" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("cores", "memory", "count"), [(16, 80, 6), (16, 24, 2), (2, 80, 1), (1, 0, 1)])
def test_tests_are_shared_by_what_the_machine_has(cores, memory, count):
    assert plan.processes(cores, memory << 30) == count


def test_the_plan_ends_with_what_may_be_cut_off():
    several = plan.plan(Path("x"), dry=False)
    assert [stage.name for stage in several] == [
        "environment", "build", "extension", "quick", "doctor", "memcheck", "racecheck", "times", "long",
    ]  # fmt: skip
    assert several[-1].open_end
    # What must come to its end leaves time for the rest, though it take all of its limits.
    assert sum(stage.limit for stage in several if not stage.open_end) <= SECONDS - 60


# Building without ninja

SETUP = """
import os, sys
from bench.gpu import build

os.cpu_count = lambda: 2
compile_in_processes = build.compile_in_processes

def said(compiler, objects, one):
    print(len(objects), "in processes")
    compile_in_processes(compiler, objects, one)

build.compile_in_processes = said
build.without_ninja()
from setuptools import Extension, setup
setup(name="x", ext_modules=[Extension("x", ["one.c", "two.c", "three.c"])])
"""
MODULE = """
#include <Python.h>
int two(void); int three(void);
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "x", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_x(void) {
    PyObject *made = PyModule_Create(&module);
    PyModule_AddIntConstant(made, "five", two() + three());
    return made;
}
"""


@pytest.mark.skipif(not compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("third", ["int three(void) { return 3; }", "int three(void) { return }"])
def test_files_are_compiled_in_processes(third, tmp_path):
    for name, text in {"one": MODULE, "two": "int two(void) { return 2; }", "three": third}.items():
        (tmp_path / f"{name}.c").write_text(text)
    (tmp_path / "setup.py").write_text(SETUP)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    answer = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert "3 in processes" in answer.stdout
    if "3" in third:
        assert answer.returncode == 0, answer.stderr
        show = [sys.executable, "-c", "import x; print(x.five)"]
        assert subprocess.run(show, cwd=tmp_path, capture_output=True, text=True).stdout == "5\n"
    else:
        assert answer.returncode != 0
        assert "three.c" in answer.stderr
