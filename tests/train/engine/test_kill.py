"""A killed run: whatever the moment, its files are whole and it goes on to the end of a run without a stop."""

import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from test_training_loop import assert_same_bits, log

from ssl_fast.train import files
from ssl_fast.train.commands.exit_code import exit_code
from ssl_fast.train.engine import checkpoint, config_file, training_loop
from tests.helpers.small_runs import TEST_IMAGES, TRAIN_IMAGES, limit_digits, small_recipe

pytestmark = pytest.mark.long

# A process that has imported all and computed nothing, of which each run is a fork: half a second instead of ten.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ssl_fast.train.engine.training_loop", "test_kill"])
RECIPE = "moco-v2-small"
EPOCHS = 10


def slowly(function, seconds):
    def slow(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    return slow


def train(folder, name, epochs, resume, fsync_seconds=0.0, largest_file=resource.RLIM_INFINITY):
    """What the process does: the command's exit code is its own."""
    torch.set_num_threads(1)
    os.fsync = slowly(os.fsync, fsync_seconds)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    sys.stderr = open(folder.with_suffix(".err"), "w")  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        limit_digits(patch, TRAIN_IMAGES, TEST_IMAGES)
        recipe = small_recipe(name, epochs=epochs)
        code = exit_code("train", lambda: training_loop.train(name, recipe, "digits", folder, resume=resume))
    sys.stderr.flush()
    os._exit(code)


def started(folder, name=RECIPE, epochs=EPOCHS, **options):
    resume = (folder / checkpoint.LAST).exists()
    process = CONTEXT.Process(target=train, args=(folder, name, epochs, resume), kwargs=options)
    process.start()
    return process


def finish(folder, **options):
    process = started(folder, **options)
    process.join()
    return process.exitcode


def wait_for(ready, process):
    while not ready() and process.is_alive():
        time.sleep(0.005)


def assert_whole(folder):
    """Every file that is there is complete, and of the same run."""
    assert yaml.safe_load((folder / config_file.NAME).read_text())["versions"]["ssl_fast"]
    kept = [checkpoint.load(path) for path in folder.glob("*.pt")]
    if (folder / "log.csv").exists():
        text = (folder / "log.csv").read_text()
        assert text.endswith("\n")
        epochs = [int(row["epoch"]) for row in log(folder)]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(epochs) >= max((contents["epoch"] for contents in kept), default=0)


def parts(folder):
    return list(folder.glob(f".*{files.PART}"))


def check_kills(folder, name, kills, fsync_seconds, longest, epochs=EPOCHS):
    """Kills a run again and again, each time after a random while, and lets it end."""
    assert finish(folder / "unbroken", name=name, epochs=epochs) == 0
    killed, delays = folder / "killed", random.Random(0)
    for _ in range(kills):
        process = started(killed, name=name, epochs=epochs, fsync_seconds=fsync_seconds)
        config_before = (killed / config_file.NAME).stat().st_mtime_ns if (killed / config_file.NAME).exists() else 0
        wait_for(
            lambda before=config_before: (
                (killed / config_file.NAME).exists() and (killed / config_file.NAME).stat().st_mtime_ns != before
            ),
            process,
        )
        time.sleep(delays.uniform(0, longest))
        process.kill()
        process.join()
        assert_whole(killed)
        if process.exitcode == 0:
            break
    assert finish(killed, name=name, epochs=epochs) == 0
    assert_whole(killed)
    assert not parts(killed)
    assert_same_bits(killed, folder / "unbroken")


def test_killed_at_any_time(tmp_path):
    # The first time while a file is written, which a slow disk makes easy to meet.
    process = started(tmp_path / "killed", name=RECIPE, epochs=EPOCHS, fsync_seconds=0.3)
    wait_for(lambda: list((tmp_path / "killed").glob(f".{checkpoint.LAST}*")), process)
    process.kill()
    process.join()
    assert parts(tmp_path / "killed")
    check_kills(tmp_path, RECIPE, kills=4, fsync_seconds=0.1, longest=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("fsync_seconds", [0.0, 0.1])
@pytest.mark.parametrize("name", ["simclr-small", "moco-v2-small", "moco-v3-small", "instdisc-small"])
def test_every_method_killed_at_any_time(name, fsync_seconds, tmp_path):
    check_kills(tmp_path, name, kills=15, fsync_seconds=fsync_seconds, longest=0.7 + 5 * fsync_seconds, epochs=20)


def test_full_disk(tmp_path):
    folder = tmp_path / "run"
    assert finish(folder, epochs=2) == 0
    before = (folder / checkpoint.LAST).read_bytes()
    other = tmp_path / "other"
    assert finish(other, largest_file=len(before) // 2) == 2
    (line,) = [line for line in (tmp_path / "other.err").read_text().splitlines() if line.startswith("ssl-fast")]
    assert re.fullmatch(r"ssl-fast train: \[Errno \d+\] File too large: '.*\.pt'", line)
    assert not list(other.glob("*.pt"))
    assert not parts(other)
    # With an older checkpoint there: it stays, and the run goes on when there is room.
    process = started(other, epochs=4, fsync_seconds=0.2)
    wait_for((other / checkpoint.LAST).exists, process)
    process.kill()
    process.join()
    before = (other / checkpoint.LAST).read_bytes()
    assert finish(other, epochs=4, largest_file=len(before) // 2) == 2
    assert (other / checkpoint.LAST).read_bytes() == before
    assert finish(other, epochs=4) == 0
    assert checkpoint.load(other / checkpoint.LAST)["epoch"] == 4


def fill_the_disk(folder, answers):
    """At every length that a checkpoint can be cut to."""
    torch.set_num_threads(1)
    contents = {"model": {str(number): torch.zeros(number) for number in range(1, 60, 7)}, "large": torch.zeros(5000)}
    checkpoint.save(folder / "whole.pt", contents)
    size, outcomes = (folder / "whole.pt").stat().st_size, set()
    for largest in range(0, size, 97):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        try:
            checkpoint.save(folder / "cut.pt", contents)
        except Exception as error:
            outcomes.add(f"{type(error).__name__}: {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    answers.put((outcomes, [path.name for path in folder.iterdir()]))


def test_disk_full_at_every_byte(tmp_path):
    answers = CONTEXT.SimpleQueue()
    process = CONTEXT.Process(target=fill_the_disk, args=(tmp_path, answers))
    process.start()
    outcomes, names = answers.get()
    process.join()
    (outcome,) = outcomes
    assert re.fullmatch(rf"OSError: \[Errno \d+\] File too large: '{tmp_path}/cut.pt'", outcome)
    assert names == ["whole.pt"]


def test_parts_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".last.pt.abc{files.PART}").write_text("half")
    (folder / ".mine").write_text("whole")
    assert finish(folder, epochs=1) == 0
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".mine"]


@pytest.mark.slow
def test_the_command_killed(tmp_path):
    """As a user starts it, on all digits."""
    recipe = small_recipe(RECIPE)
    config_file.save(tmp_path, RECIPE, recipe, "digits", training_loop.Settings(accelerator="cpu"))

    def words(name):
        options = [
            "--config",
            str(tmp_path / config_file.NAME),
            "--folder",
            str(tmp_path / name),
            "--batch-size",
            "256",
        ]
        resume = ["--resume"] if (tmp_path / name / checkpoint.LAST).exists() else []
        return [sys.executable, "-m", "ssl_fast", "train", *options, *resume]

    def run(name):
        return subprocess.run(words(name), capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert run("unbroken").returncode == 0
    process = subprocess.Popen(words("killed"), stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / checkpoint.LAST).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_whole(tmp_path / "killed")
    assert run("killed").returncode == 0
    assert_same_bits(tmp_path / "killed", tmp_path / "unbroken")
