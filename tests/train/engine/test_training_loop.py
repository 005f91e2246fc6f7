"""The loop: an interrupted run equals an unbroken one, and what a run writes."""

import copy
import csv
import dataclasses
import itertools
import math
import signal

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_fast.train.engine import checkpoint, run_state, training_loop
from ssl_fast.train.engine.settings import Settings
from ssl_fast.train.evaluation import report
from tests.helpers.small_runs import SMALL_RECIPES, TRAIN_IMAGES, small_recipe

pytestmark = pytest.mark.usefixtures("few_digits")


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
    got, expected = (flat(torch.load(path / checkpoint.LAST)) for path in (folder, expected_folder))
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
    "after epoch 2": (run_state.Run, "finish_epoch", 2, interrupt),
    "in the middle of epoch 3": (run_state.Run, "train_step", 8, interrupt),
    "in the first step": (run_state.Run, "train_step", 1, interrupt),
    "before epoch 3 takes a step": (run_state.Run, "train_epoch", 3, interrupt),
    "crash in the middle of epoch 3": (run_state.Run, "train_step", 8, crash),
    "crash between log and checkpoint": (checkpoint, "save", 3, crash),
}


# Every interruption of one method, and one of every method.
CASES = [("moco-v2-small", interruption) for interruption in INTERRUPTIONS]
CASES += [(name, "in the middle of epoch 3") for name in SMALL_RECIPES if name != "moco-v2-small"]


@pytest.mark.long
@pytest.mark.parametrize(("recipe_name", "interruption"), CASES)
def test_interrupted_and_resumed_equals_unbroken(recipe_name, interruption, tmp_path):
    recipe = small_recipe(recipe_name)
    unbroken = training_loop.train(recipe_name, recipe, "digits", tmp_path / "unbroken")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, *INTERRUPTIONS[interruption])
        with pytest.raises((KeyboardInterrupt, Crash)):
            training_loop.train(recipe_name, recipe, "digits", tmp_path / "resumed")
    torch.manual_seed(99)  # another process would have another state
    resumed = training_loop.train(recipe_name, recipe, "digits", tmp_path / "resumed", resume=True)
    assert_same_bits(tmp_path / "resumed", tmp_path / "unbroken")
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_interrupt_keeps_the_steps_of_the_epoch(tmp_path, monkeypatch, capsys):
    at_call(monkeypatch, run_state.Run, "train_step", 5, interrupt)
    with pytest.raises(KeyboardInterrupt):
        training_loop.train("simclr-small", small_recipe("simclr-small"), "digits", tmp_path)
    contents = checkpoint.load(tmp_path / checkpoint.LAST)
    assert (contents["epoch"], contents["step"]) == (1, 2)
    command = f"ssl-fast train --config {tmp_path}/config.yaml --folder {tmp_path} --resume"
    assert command in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def twice():
        interrupt()
        interrupt()

    at_call(monkeypatch, run_state.Run, "train_step", 2, twice)
    with pytest.raises(KeyboardInterrupt):
        training_loop.train("simclr-small", small_recipe("simclr-small"), "digits", tmp_path)
    assert not (tmp_path / checkpoint.LAST).exists()


def test_interrupt_in_the_last_epoch_lets_the_run_end(tmp_path, monkeypatch):
    at_call(monkeypatch, report, "accuracies", 4, interrupt)
    training_loop.train("simclr-small", small_recipe("simclr-small"), "digits", tmp_path)
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 4


def test_training_learns(tmp_path):
    training_loop.train("simclr-small", small_recipe("simclr-small", epochs=60, encoder="small-16"), "digits", tmp_path)
    losses = [float(row["loss"]) for row in log(tmp_path)]
    # At first every candidate, 63 of two views of 32 images, looks alike.
    assert losses[0] == pytest.approx(math.log(63), abs=0.1)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.long
@pytest.mark.parametrize("recipe_name", SMALL_RECIPES)
def test_training_repeats_and_depends_on_the_seed(recipe_name, tmp_path):
    recipe = small_recipe(recipe_name)
    for name, seed in (("once", 0), ("twice", 0), ("other", 1)):
        training_loop.train(recipe_name, dataclasses.replace(recipe, seed=seed), "digits", tmp_path / name)
    assert_same_bits(tmp_path / "twice", tmp_path / "once")
    assert log(tmp_path / "other")[-1]["loss"] != log(tmp_path / "once")[-1]["loss"]


def test_every_epoch_takes_each_image_at_most_once(tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(run_state.Run, "train_step", lambda run, batches: taken.extend(index for _, index in batches))
    monkeypatch.setattr(report, "accuracies", lambda *arguments, **options: {})
    training_loop.train("simclr-small", small_recipe("simclr-small", epochs=2), "digits", tmp_path)
    epochs = [torch.cat(taken[:3]), torch.cat(taken[3:])]
    assert [len(batch) for batch in taken] == [32] * 6
    for order in epochs:
        assert len(order.unique()) == 96
        assert set(order.tolist()) <= set(range(TRAIN_IMAGES))
    assert not torch.equal(*epochs)


def test_what_a_run_writes(tmp_path):
    recipe = small_recipe("moco-v2-small", epochs=30, seed=7)
    training_loop.train("moco-v2-small", recipe, "digits", tmp_path)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (saved["recipe"], saved["data"], saved["seed"], saved["view1"]["order"][0]) == (
        "moco-v2-small", "digits", 7, "affine",
    )  # fmt: skip
    assert saved["versions"]["torch"] == torch.__version__
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
    recipe = small_recipe("simclr-small", epochs=1)
    training_loop.train("simclr-small", recipe, "digits", tmp_path)
    before = (tmp_path / checkpoint.LAST).read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        training_loop.train("simclr-small", recipe, "digits", tmp_path)
    assert (tmp_path / checkpoint.LAST).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"recipe_name": "moco-v2-small", "recipe": small_recipe("moco-v2-small")},
            r"^recipe: expected 'simclr-small'",
        ),
        ({"data_spec": "fashion-mnist"}, r"^data: expected 'digits'"),
        ({"recipe": small_recipe("simclr-small", epochs=5)}, r"^epochs: expected 4 .* got 5$"),
    ],
)
def test_resume_of_another_run(changes, message, tmp_path):
    arguments = {"recipe_name": "simclr-small", "recipe": small_recipe("simclr-small"), "data_spec": "digits"}
    training_loop.train(**arguments, folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        training_loop.train(**{**arguments, **changes}, folder=tmp_path, resume=True)


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
        training_loop.train("simclr-small", small_recipe("simclr-small", **changes), "digits", tmp_path)
    assert not (tmp_path / checkpoint.LAST).exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"last\.pt: no such checkpoint$"):
        training_loop.train("simclr-small", small_recipe("simclr-small"), "digits", tmp_path, resume=True)
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_stay(tmp_path):
    settings = Settings(save_every=2, evaluate_every=2)
    training_loop.train("simclr-small", small_recipe("simclr-small", epochs=5), "digits", tmp_path, settings)
    kept = {path.name: checkpoint.load(path) for path in tmp_path.glob("*.pt")}
    assert {name: contents["epoch"] for name, contents in kept.items() if name != "best.pt"} == {
        "epoch-0002.pt": 2, "epoch-0004.pt": 4, "last.pt": 5,
    }  # fmt: skip
    rows = kept["last.pt"]["history"]
    measured = {row["epoch"]: row["knn_clean"] for row in rows if row["knn_clean"] is not None}
    assert list(measured) == [1, 2, 4, 5]
    best = kept["best.pt"]
    assert best["best"] == max(measured.values()) == measured[best["epoch"]]
    assert all(row["uniformity"] < 0 <= row["alignment"] for row in rows if row["epoch"] in measured)


def test_accumulated_batches_give_the_mean_of_their_gradients(monkeypatch):
    recipe = small_recipe("simclr-small", batch_size=16, accumulate=3, optimizer="sgd", learning_rate=1.0)
    recipe = dataclasses.replace(recipe, optimizer_momentum=0.0, weight_decay=0.0, warm_up_epochs=0.0)
    whole = run_state.Run("simclr-small", recipe, "digits", Settings(), Fabric(accelerator="cpu", devices=1))
    assert whole.steps == 2  # of the 6 batches an epoch
    twin = copy.deepcopy(whole.method)
    batches = list(itertools.islice(whole.batches.epoch(0), 3))
    for views, index in batches:
        (twin.loss(views, index).loss / 3).backward()
    whole.train_step(batches)
    for parameter, before in zip(whole.method.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, before - before.grad, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped():
    recipe = small_recipe("simclr-small", optimizer="sgd", learning_rate=1.0, clip_gradient=1e-3)
    recipe = dataclasses.replace(recipe, optimizer_momentum=0.0, weight_decay=0.0, warm_up_epochs=0.0)
    clipped = run_state.Run("simclr-small", recipe, "digits", Settings(), Fabric(accelerator="cpu", devices=1))
    before = [parameter.detach().clone() for parameter in clipped.method.parameters()]
    clipped.train_step(itertools.islice(clipped.batches.epoch(0), 1))
    moved = torch.cat([(a - b).detach().flatten() for a, b in zip(clipped.method.parameters(), before, strict=True)])
    assert moved.norm() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("recipe_changes", "settings", "message"),
    [
        ({"accumulate": 4}, {}, r"^accumulate: expected at most an epoch's 3, got 4"),
        ({"bn_groups": 4, "sync_batch_norm": True}, {}, r"^bn_groups: expected 1 with sync_batch_norm"),
        ({}, {"cuda_graph": True}, r"^cuda_graph: expected one CUDA device and accumulate 1, got 1 x cpu"),
        ({}, {"log_every": 0}, r"^log_every: expected at least 1, got 0"),
        ({}, {"wandb": "project"}, r"^wandb: is not installed: pip install"),
    ],
)
def test_settings_that_cannot_run(recipe_changes, settings, message, tmp_path):
    settings = Settings(accelerator="cpu", **settings)
    with pytest.raises(ValueError, match=message):
        training_loop.train(
            "simclr-small", small_recipe("simclr-small", **recipe_changes), "digits", tmp_path / "run", settings
        )
    assert not (tmp_path / "run" / checkpoint.LAST).exists()


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"channels_last": True}])
@pytest.mark.parametrize("recipe_name", SMALL_RECIPES)
def test_precisions_and_layouts_learn_alike(recipe_name, settings, tmp_path):
    recipe = small_recipe(recipe_name, epochs=2)
    losses = []
    for name, chosen in (("plain", Settings(accelerator="cpu")), ("other", Settings(accelerator="cpu", **settings))):
        training_loop.train(recipe_name, recipe, "digits", tmp_path / name, chosen)
        losses.append([float(row["loss"]) for row in log(tmp_path / name)])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("recipe_name", ["simclr-small", "moco-v2-small"])
def test_compiled_encoders_learn_alike(recipe_name, tmp_path):
    recipe = small_recipe(recipe_name, epochs=2)
    for name, chosen in (("plain", Settings()), ("compiled", Settings(compile=True))):
        training_loop.train(recipe_name, recipe, "digits", tmp_path / name, chosen)
    plain, compiled = ([float(row["loss"]) for row in log(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-3)
