"""The loop: an interrupted run equals an unbroken one, and what a run writes."""

import csv
import dataclasses
import json
import math
import signal

import pytest
import torch
from conftest import TRAIN_IMAGES, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_fast.train import checkpoint, loop, report
from ssl_fast.train.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("few_digits")
METHODS = tuple(RECIPES)


class Crash(Exception):
    pass


def interrupt():
    signal.raise_signal(signal.SIGINT)


def crash():
    raise Crash


def at_call(monkeypatch, owner, name, number, happens):
    """Lets something happen before the number-th call of a function."""
    function = getattr(owner, name)
    calls = 0

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            happens()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


def log(folder):
    """The rows of log.csv, without the speed, which no two runs share."""
    with open(folder / "log.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name != "images_per_second"} for row in csv.DictReader(file)
        ]


def flat(value, name="") -> dict:
    """The leaves of nested dicts and lists by their path."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    else:
        return {name: value}
    return {path: leaf for key, child in children for path, leaf in flat(child, f"{name}/{key}").items()}


def scalars(folder, name) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(name)]


def assert_same_bits(folder, expected_folder):
    got, expected = (flat(torch.load(path / checkpoint.NAME)) for path in (folder, expected_folder))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        elif not name.endswith("images_per_second"):
            assert got[name] == value, name
    assert log(folder) == log(expected_folder)
    for name in ("loss", "knn_clean"):
        assert scalars(folder, name) == scalars(expected_folder, name)


INTERRUPTIONS = {
    "after epoch 2": (loop.Run, "finish_epoch", 2, interrupt),
    "in the middle of epoch 3": (loop.Run, "_train_step", 8, interrupt),
    "in the first step": (loop.Run, "_train_step", 1, interrupt),
    "before epoch 3 takes a step": (loop.Run, "train_epoch", 3, interrupt),
    "crash in the middle of epoch 3": (loop.Run, "_train_step", 8, crash),
    "crash between log and checkpoint": (checkpoint, "save", 3, crash),
}


@pytest.mark.parametrize("method_name", METHODS)
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_interrupted_and_resumed_equals_unbroken(method_name, interruption, tmp_path):
    recipe = small_recipe(method_name)
    unbroken = loop.train(method_name, recipe, "digits", tmp_path / "unbroken")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, *INTERRUPTIONS[interruption])
        with pytest.raises((KeyboardInterrupt, Crash)):
            loop.train(method_name, recipe, "digits", tmp_path / "resumed")
    torch.manual_seed(99)  # another process would have another state
    resumed = loop.train(method_name, recipe, "digits", tmp_path / "resumed", resume=True)
    assert_same_bits(tmp_path / "resumed", tmp_path / "unbroken")
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_interrupt_keeps_the_steps_of_the_epoch(tmp_path, monkeypatch, capsys):
    at_call(monkeypatch, loop.Run, "_train_step", 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train("simclr", small_recipe("simclr"), "digits", tmp_path)
    contents = checkpoint.load(tmp_path / checkpoint.NAME)
    assert (contents["epoch"], contents["step"]) == (1, 2)
    command = f"ssl-fast train simclr --data digits --folder {tmp_path} --resume --epochs 4 --batch-size 32"
    assert command in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def twice():
        interrupt()
        interrupt()

    at_call(monkeypatch, loop.Run, "_train_step", 2, twice)
    with pytest.raises(KeyboardInterrupt):
        loop.train("simclr", small_recipe("simclr"), "digits", tmp_path)
    assert not (tmp_path / checkpoint.NAME).exists()


def test_interrupt_in_the_last_epoch_lets_the_run_end(tmp_path, monkeypatch):
    at_call(monkeypatch, report, "accuracies", 4, interrupt)
    loop.train("simclr", small_recipe("simclr"), "digits", tmp_path)
    assert checkpoint.load(tmp_path / checkpoint.NAME)["epoch"] == 4


def test_training_learns(tmp_path):
    loop.train("simclr", small_recipe("simclr", epochs=60, width=16), "digits", tmp_path)
    losses = [float(row["loss"]) for row in log(tmp_path)]
    # At first every candidate, 63 of two views of 32 images, looks alike.
    assert losses[0] == pytest.approx(math.log(63), abs=0.1)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("method_name", METHODS)
def test_training_repeats_and_depends_on_the_seed(method_name, tmp_path):
    recipe = small_recipe(method_name)
    for name, seed in (("once", 0), ("twice", 0), ("other", 1)):
        loop.train(method_name, dataclasses.replace(recipe, seed=seed), "digits", tmp_path / name)
    assert_same_bits(tmp_path / "twice", tmp_path / "once")
    assert log(tmp_path / "other")[-1]["loss"] != log(tmp_path / "once")[-1]["loss"]


def test_every_epoch_takes_each_image_at_most_once(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(loop.Run, "_train_step", lambda run, indices: taken.append(indices))
    monkeypatch.setattr(report, "accuracies", lambda *arguments, **options: {})
    loop.train("simclr", small_recipe("simclr", epochs=2), "digits", tmp_path)
    epochs = [torch.cat(taken[:3]), torch.cat(taken[3:])]
    assert [len(batch) for batch in taken] == [32] * 6
    for order in epochs:
        assert len(order.unique()) == 96
        assert set(order.tolist()) <= set(range(TRAIN_IMAGES))
    assert not torch.equal(*epochs)


def test_the_two_views_differ(tmp_path, monkeypatch):
    method, seen = loop.METHODS["simclr"], []
    right = method.loss
    monkeypatch.setattr(method, "loss", lambda self, *views: (seen.append(views), right(self, *views))[1])
    loop.train("simclr", small_recipe("simclr", epochs=1), "digits", tmp_path)
    for view1, view2 in seen:
        assert view1.shape == view2.shape
        assert not torch.equal(view1, view2)


def test_what_a_run_writes(tmp_path):
    recipe = small_recipe("moco-v2", epochs=30, seed=7)
    loop.train("moco-v2", recipe, "digits", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["recipe"] == dataclasses.asdict(recipe)
    assert (config["method"], config["data"], config["seed"]) == ("moco-v2", "digits", 7)
    assert config["versions"]["torch"] == torch.__version__
    rows = log(tmp_path)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 31))
    measured = [int(row["epoch"]) for row in rows if row["knn_clean"]]
    assert measured == [1, *range(2, 31, 2)]
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) <= recipe.learning_rate
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 31))
    assert [event.step for event in events.Scalars("knn_transformed")] == measured
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([float(row["loss"]) for row in rows])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_checkpoint_is_not_overwritten(tmp_path):
    recipe = small_recipe("simclr", epochs=1)
    loop.train("simclr", recipe, "digits", tmp_path)
    before = (tmp_path / checkpoint.NAME).read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        loop.train("simclr", recipe, "digits", tmp_path)
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method_name": "moco-v2", "recipe": small_recipe("moco-v2")}, r"^method: expected 'simclr'"),
        ({"dataset_spec": "fashion-mnist"}, r"^data: expected 'digits'"),
        ({"recipe": small_recipe("simclr", epochs=5)}, r"^epochs: expected 4 .* got 5$"),
    ],
)
def test_resume_of_another_run(changes, message, tmp_path):
    arguments = {"method_name": "simclr", "recipe": small_recipe("simclr"), "dataset_spec": "digits"}
    loop.train(**arguments, folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        loop.train(**{**arguments, **changes}, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": TRAIN_IMAGES + 1}, r"^batch_size: expected 1 to the 104 training images, got 105$"),
        ({"batch_size": 0}, r"^batch_size: .* got 0$"),
        ({"epochs": 0}, r"^epochs: expected at least 1, got 0$"),
        ({"temperature": 0.0}, r"temperature"),
        ({"learning_rate": 1e30}, r"^loss: (nan|inf) in epoch \d; a smaller learning_rate"),
    ],
)
def test_recipes_that_cannot_run(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        loop.train("simclr", small_recipe("simclr", **changes), "digits", tmp_path)
    assert not (tmp_path / checkpoint.NAME).exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint\.pt: no such checkpoint$"):
        loop.train("simclr", small_recipe("simclr"), "digits", tmp_path, resume=True)
    assert not list(tmp_path.iterdir())
