"""Runs of two gloo processes, started as a user starts them: by torchrun, or by the command itself.

Most is done by one pair of processes, for which this file is the script: see `work`.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_training_loop import assert_same_bits, at_call, interrupt, log
from torch import nn

from ssl_fast.parallel.collectives import gather
from ssl_fast.train.engine import checkpoint, config_file, run_state, training_loop
from ssl_fast.train.engine.settings import Settings
from ssl_fast.train.evaluation import report
from ssl_fast.train.models import method, methods, moco_v3
from tests.helpers.small_runs import TEST_IMAGES, TRAIN_IMAGES, limit_digits, small_recipe

pytestmark = pytest.mark.long

METHODS = ("simclr-small", "moco-v2-small", "moco-v3-small", "instdisc-small")
SETTINGS = Settings(accelerator="cpu", devices=2, log_every=1)
RECIPES = {name: small_recipe(name, epochs=2) for name in METHODS}
# Everything that MoCo has for several devices and little memory, at once.
RECIPES["moco-v1-small"] = small_recipe(
    "moco-v1-small", epochs=2, batch_size=16, bn_groups=2, micro_batch=4, accumulate=2, queue_dtype="bfloat16"
)
PARTS = {"whole": {}, "in parts": {"accumulate": 2, "micro_batch": 6}}
REFUSED = {
    "batch_size": ({"batch_size": 33}, "digits"),
    "bn_groups": ({"batch_size": 36, "bn_groups": 4}, "digits"),
    "sync_batch_norm": ({"sync_batch_norm": True}, "digits"),
    "loss": ({"learning_rate": 1e30}, "digits"),
    "data": ({}, "fashion-mnist:nowhere"),
}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(*words, **options):
    # The helpers are found by pytest's path, which a process that it starts does not have.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options,
    )  # fmt: skip


def output_of(process, seconds=200):
    """What it printed until its end; all that it started ends with it."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


# What the two processes do.


def work(folder):
    torch.set_num_threads(1)
    limit_digits(pytest.MonkeyPatch(), TRAIN_IMAGES, TEST_IMAGES)
    fabric = training_loop.launched(SETTINGS)
    results = {
        "trained": {name: trained(fabric, name, folder / name) for name in RECIPES},
        "step": {(name, parts): step(fabric, name, parts) for name in METHODS for parts in PARTS},
        "interrupted": interrupted(fabric, folder),
        "refused": {name: refused(fabric, *REFUSED[name], folder / "refused") for name in REFUSED},
    }
    training_loop.train(
        METHODS[1], RECIPES[METHODS[1]], "digits", folder / "of one", SETTINGS, resume=True, fabric=fabric
    )
    torch.save(results, folder / f"{fabric.global_rank}.pt")


def trained(fabric, name, folder):
    measured = []
    with pytest.MonkeyPatch.context() as patch:
        accuracies = report.accuracies
        patch.setattr(report, "accuracies", lambda *x, **options: measured.append(1) or accuracies(*x, **options))
        method = training_loop.train(name, RECIPES[name], "digits", folder, SETTINGS, fabric=fabric)
    return len(measured), {key: value.clone() for key, value in method.state_dict().items()}


def interrupted(fabric, folder):
    """Ctrl-C reaches one process, in the middle of an epoch: whether both stop. One run goes on, one is left."""
    name, stopped = METHODS[1], []
    for part in ("resumed", "left"):
        with pytest.MonkeyPatch.context() as patch:
            if fabric.global_rank == 1:
                at_call(patch, run_state.Run, "train_step", 5, interrupt)
            try:
                training_loop.train(name, RECIPES[name], "digits", folder / part, SETTINGS, fabric=fabric)
            except KeyboardInterrupt:
                stopped.append(part)
    torch.manual_seed(99)
    training_loop.train(name, RECIPES[name], "digits", folder / "resumed", SETTINGS, resume=True, fabric=fabric)
    return stopped


def refused(fabric, changes, data, folder):
    try:
        training_loop.train(METHODS[1], small_recipe(METHODS[1], **changes), data, folder, SETTINGS, fabric=fabric)
    except (ValueError, OSError) as error:
        return str(error)


def without_batch_norm(module, groups=1):
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if "BatchNorm" in type(child).__name__ else without_batch_norm(child))
    return module


def step(fabric, name, parts):
    """The largest differences of a step of both processes from one with the global batch: each of its largest entry."""
    recipe = dataclasses.replace(small_recipe(name, warm_up_epochs=0.0), **PARTS[parts])
    with pytest.MonkeyPatch.context() as patch:
        for module in (method, moco_v3):
            patch.setattr(module, "in_groups", without_batch_norm)
        # In float64: without batch norm all images' features are so close that a gradient cancels to a few digits.
        patch.setattr(run_state, "build", lambda *arguments: methods.build(*arguments).double())
        both = run_state.Run(name, recipe, "digits", SETTINGS, fabric)
        alone = methods.build(dataclasses.replace(recipe, micro_batch=0), 1, 8, TRAIN_IMAGES).double()
    torch.manual_seed(5)
    with torch.no_grad():
        for key, parameter in both.method.named_parameters():
            if key.startswith("key_"):  # as after some training
                parameter += 0.1 * torch.randn_like(parameter)
    alone.load_state_dict(both.method.state_dict())
    batches = [
        ([view.double() for view in views], index)
        for (views, index), _ in zip(both.batches.epoch(0), range(recipe.accumulate), strict=False)
    ]
    alone.start_step(0, both.total_steps)
    for views, index in batches:
        *views, index = (gather(x, dist.group.WORLD) for x in [*views, index])
        result = alone.loss(views, index)
        (result.loss / recipe.accumulate).backward()
        alone.after_backward(result.embeddings, index)
    both.train_step(batches)
    errors = {}
    for key, parameter in alone.named_parameters():
        if parameter.requires_grad:
            errors[key] = difference(both.method.get_parameter(key).grad, parameter.grad)
        else:
            errors[key] = difference(both.method.get_parameter(key), parameter)
    kept = both.method.state_dict()
    return errors | {key: difference(kept[key], buffer) for key, buffer in alone.named_buffers() if key in kept}


def difference(got, expected):
    scale = expected.double().abs().max().clamp_min(1e-30)
    return float((got.double() - expected.double()).abs().max() / scale)


# What the tests look at.


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder in which two processes did their work, and what each found."""
    folder = tmp_path_factory.mktemp("processes")
    with pytest.MonkeyPatch.context() as patch:
        limit_digits(patch, TRAIN_IMAGES, TEST_IMAGES)
        at_call(patch, run_state.Run, "train_step", 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            training_loop.train(METHODS[1], RECIPES[METHODS[1]], "digits", folder / "of one")
    process = start(*TORCHRUN, __file__, folder)
    output = output_of(process)
    assert process.returncode == 0, output
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)], output


@pytest.mark.parametrize("name", RECIPES)
def test_both_end_with_the_same_and_one_writes(name, done):
    folder, results, _ = done
    (measured, state), (measured_by_other, other) = (found["trained"][name] for found in results)
    for key, value in state.items():
        # Batch norm's own are those of the process's images; rank 0's are kept.
        if not key.endswith(("running_mean", "running_var")):
            assert torch.equal(value, other[key]), key
    assert measured > 0
    assert measured_by_other == 0
    rows = log(folder / name)
    assert [int(row["epoch"]) for row in rows] == list(range(1, RECIPES[name].epochs + 1))
    names = sorted(path.name for path in (folder / name).iterdir())
    assert len([name for name in names if name.startswith("events.")]) == 1
    assert [name for name in names if not name.startswith("events.")] == [
        "best.pt",
        "config.yaml",
        "last.pt",
        "log.csv",
    ]
    saved = checkpoint.load(folder / name / checkpoint.LAST)["model"]
    assert all(torch.equal(saved[key], value) for key, value in state.items())


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_that_of_the_global_batch(name, parts, done):
    for found in done[1]:
        errors = found["step"][name, parts]
        assert len(errors) > 4
        assert max(errors.values()) < 1e-7, errors


def test_an_interrupt_of_one_stops_both_and_the_run_goes_on_bit_for_bit(done):
    folder, results, output = done
    assert [found["interrupted"] for found in results] == [["resumed", "left"]] * 2
    left = checkpoint.load(folder / "left" / checkpoint.LAST)
    assert (left["epoch"], left["step"]) == (1, 2)
    assert output.count("Go on with") == 2
    assert_same_bits(folder / "resumed", folder / METHODS[1])


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "batch_size": "batch_size: expected a multiple of 2 processes x 1 bn_groups, got 33",
        "bn_groups": "batch_size: expected a multiple of 2 processes x 4 bn_groups, got 36",
        "sync_batch_norm": "sync_batch_norm: torch has it on CUDA devices only; here --no-sync-batch-norm",
        "loss": "loss: nan in epoch 1; a smaller learning_rate may help",
        "data": "data: expected a folder with Fashion-MNIST's idx files, nowhere is none",
    }.items(),
)
def test_both_refuse(name, message, done):
    for found in done[1]:
        assert found["refused"][name].startswith(message)


def test_resumed_by_another_number_of_processes(done, few_digits, capsys):
    folder, _, output = done
    recipe = RECIPES[METHODS[1]]
    training_loop.train(METHODS[1], recipe, "digits", folder / "left", Settings(accelerator="cpu"), resume=True)
    message = "Resumed with another number of processes ({} before): same weights, order of the images and schedule"
    assert message.format(2) in capsys.readouterr().out
    assert output.count(message.format(1)) == 1
    for name in ("left", "of one"):
        contents = checkpoint.load(folder / name / checkpoint.LAST)
        assert contents["epoch"] == recipe.epochs
        assert len(log(folder / name)) == recipe.epochs


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_devices_that_are_not_there():
    with pytest.raises(ValueError, match=r"^accelerator: .*CUDAAccelerator"):
        training_loop.launched(Settings(accelerator="cuda"))


# The command itself, on all digits.


@pytest.fixture
def words(tmp_path):
    recipe = small_recipe(METHODS[1], epochs=60, batch_size=256)
    settings = dataclasses.replace(SETTINGS, evaluate_every=60, log_every=5)
    config_file.save(tmp_path, METHODS[1], recipe, "digits", settings)
    return ["-m", "ssl_fast", "train", "--config", tmp_path / config_file.NAME, "--folder", tmp_path / "run"]


def wait_for_first_checkpoint(folder, process):
    while process.poll() is None and not (folder / checkpoint.LAST).exists():
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["alone", "torchrun"])
def test_ctrl_c_and_resume(launcher, words, tmp_path):
    words = [*launcher, *words]
    process = start(*words)
    wait_for_first_checkpoint(tmp_path / "run", process)
    # What a terminal does: torchrun's own processes are in sessions of their own and get it from torchrun.
    os.killpg(process.pid, signal.SIGINT)
    output = output_of(process)
    assert process.returncode == (1 if launcher else 130), output
    assert "Stopped and saved" in output
    left = checkpoint.load(tmp_path / "run" / checkpoint.LAST)
    assert 1 <= left["epoch"] < 60
    process = start(*words, "--resume")
    output = output_of(process)
    assert process.returncode == 0, output
    assert checkpoint.load(tmp_path / "run" / checkpoint.LAST)["epoch"] == 60
    assert [int(row["epoch"]) for row in log(tmp_path / "run")] == list(range(1, 61))


@pytest.mark.slow
def test_torchrun_with_other_devices(words, tmp_path):
    process = start(*TORCHRUN, *words, "--devices", "1")
    assert "devices: expected 2 on all nodes, as torchrun started, got 1" in output_of(process)
    assert process.returncode == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["alone", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_of_one_ends_both(rank, launcher, tmp_path):
    process = start(*launcher, __file__, tmp_path / "run", rank)
    output = output_of(process, 100)
    assert process.returncode != 0
    assert "Crash: here" in output


class Crash(Exception):
    pass


def crash(folder, rank):
    torch.set_num_threads(1)
    limit_digits(pytest.MonkeyPatch(), TRAIN_IMAGES, TEST_IMAGES)
    fabric = training_loop.launched(SETTINGS)
    if fabric.global_rank == rank:

        def fail():
            raise Crash("here")

        at_call(pytest.MonkeyPatch(), run_state.Run, "train_step", 5, fail)
    training_loop.train(METHODS[1], RECIPES[METHODS[1]], "digits", folder, SETTINGS, fabric=fabric)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        work(Path(sys.argv[1]))
    else:
        crash(Path(sys.argv[1]), int(sys.argv[2]))
