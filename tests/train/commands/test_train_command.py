"""`ssl-fast train` and `ssl-fast eval`, as a user types them."""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch

from ssl_fast.tools import cli
from ssl_fast.train.engine import checkpoint, config_file, run_state, training_loop
from ssl_fast.train.engine.settings import Settings
from ssl_fast.train.recipes import RECIPES, View
from tests.helpers.small_runs import SMALL, small_recipe

TRAINED = ("simclr-small", "moco-v2-small")


def options(**fields):
    return [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def assert_user_error(arguments, message, capsys):
    capsys.readouterr()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith(f"ssl-fast {arguments[0]}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("recipe_name", TRAINED)
def test_train_interrupt_resume_eval(recipe_name, tmp_path, monkeypatch, capsys, few_digits):
    monkeypatch.chdir(tmp_path)
    step = run_state.Run.train_step

    def step_then_interrupt(self, batches):
        step(self, batches)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_state.Run, "train_step", step_then_interrupt)
    fields = {**SMALL, "epochs": 1, "temperature": 0.3, "seed": 5}
    assert cli.main(["train", recipe_name, "--data", "digits", *options(**fields)]) == 130
    command = next(line for line in capsys.readouterr().err.splitlines() if "--resume" in line)
    monkeypatch.setattr(run_state.Run, "train_step", step)

    assert cli.main(shlex.split(command)[1:]) == 0
    path = f"runs/{recipe_name}-digits/{checkpoint.LAST}"
    assert capsys.readouterr().out.splitlines()[-1] == f"ssl-fast eval {path}"
    contents = checkpoint.load(path)
    assert contents["epoch"] == 1
    assert {name: getattr(contents["recipe"], name) for name in fields} == fields

    assert cli.main(["eval", path]) == 0
    table = capsys.readouterr().out
    figures = [re.search(rf"knn {kind} +│ ([\d.]+)", table)[1] for kind in ("clean", "transformed")]
    # The row's figures are those of the checkpoint's own encoder: the last of the log.
    assert float(figures[0]) == pytest.approx(contents["history"][-1]["knn_clean"], abs=5e-4)
    assert float(figures[1]) == pytest.approx(contents["history"][-1]["knn_transformed"], abs=5e-4)


def changed(default):
    """Another value for every field of a dataclass."""
    values = {}
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if isinstance(value, View):
            values[field.name] = changed(value)
        elif isinstance(value, bool):
            values[field.name] = not value
        elif field.name == "order":
            values[field.name] = ("flip", "gray")
        elif isinstance(value, tuple):
            values[field.name] = tuple(entry + 1 for entry in value)
        elif isinstance(value, str) or value is None:
            choices = CHOICES.get(field.name, ("another",))
            values[field.name] = next(choice for choice in choices if choice != value)
        else:
            values[field.name] = value + 1
    return dataclasses.replace(default, **values)


CHOICES = {
    "stem": ("imagenet", "cifar"), "optimizer": ("sgd", "lars"), "learning_rate_scale": ("sqrt", "linear"),
    "schedule": ("cosine", "step"), "schedule_by": ("step", "epoch"), "queue_dtype": ("bfloat16",),
    "precision": ("16-mixed",), "head_batch_norm": ("hidden",), "predictor_batch_norm": ("none",),
}  # fmt: skip


@pytest.mark.parametrize("route", ["command line", "file"])
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_every_field_is_an_option(recipe_name, route, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(training_loop, "train", lambda *arguments: calls.append(arguments))
    recipe, settings = changed(RECIPES[recipe_name]), changed(Settings())
    config_file.save(tmp_path, recipe_name, recipe, "fashion-mnist:there", settings)
    file = str(tmp_path / config_file.NAME)
    words = ["--config", file] if route == "file" else [recipe_name, *config_file.load(file)[1]]
    assert cli.main(["train", *words, "--folder", "here"]) == 0
    got = calls.pop()
    assert got[1] == recipe
    assert got[4] == settings
    assert (got[0], got[2], str(got[3]), got[5]) == (recipe_name, "fashion-mnist:there", "here", False)


def test_the_command_line_holds_over_the_file(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(training_loop, "train", lambda *arguments: calls.append(arguments))
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 7\nbatch_size: 64\nview1:\n  blur_p: 0.25\ncompile: true\n")
    words = ["simclr", "--config", str(file), "--data", "digits", "--epochs", "9", "--no-compile"]
    assert cli.main(["train", *words]) == 0
    recipe = calls.pop()[1]
    assert (recipe.epochs, recipe.batch_size, recipe.view1.blur_p) == (9, 64, 0.25)
    assert recipe.view2 == RECIPES["simclr"].view2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", "config: expected names and values in .* got str"),
        ("a: [1", "config: .* is no YAML"),
        ("recipe: moco-v2\n", "recipe: expected moco-v2 as in .* got simclr"),
    ],
)
def test_config_files_that_are_none(text, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    assert_user_error(["train", "simclr", "--config", str(tmp_path / "mine.yaml"), "--data", "digits"], message, capsys)


def test_unknown_names_in_a_config_file(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("epoch: 3")
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "simclr", "--config", str(tmp_path / "mine.yaml"), "--data", "digits"])
    assert stop.value.code == 2
    assert "--epoch" in capsys.readouterr().err


def test_recipes_are_listed_and_printed_as_files(tmp_path, monkeypatch, capsys):
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    calls = []
    monkeypatch.setattr(training_loop, "train", lambda *arguments: calls.append(arguments))
    for name, recipe in RECIPES.items():
        capsys.readouterr()
        assert cli.main(["recipes", name]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("# Ours: " if name.endswith("-small") else "# ")
        (tmp_path / "printed.yaml").write_text(printed)
        assert cli.main(["train", "--config", str(tmp_path / "printed.yaml"), "--data", "digits"]) == 0
        assert calls.pop()[:2] == (name, recipe)
    assert_user_error(["recipes", "byol"], "recipe: expected one of simclr, .* got 'byol'", capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "simclr-small", "--data", "cifar"], "data: expected .*digits.* got 'cifar'"),
        (["train", "simclr-small", "--data", "fashion-mnist:nowhere"], "nowhere"),
        (["train", "simclr-small", "--data", "digits", "--resume"], r"last\.pt: no such checkpoint"),
        (["train", "simclr-small", "--data", "digits", "--batch-size", "100000"], "batch_size: .* got 100000"),
        (["train", "byol", "--data", "digits"], "recipe: expected ssl-fast train RECIPE, one of simclr, .* got 'byol'"),
        (["train", "--data", "digits"], "recipe: expected ssl-fast train RECIPE"),
        (["eval", "nothing.pt"], r"nothing\.pt: no such checkpoint"),
    ],
)
def test_user_errors(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_user_error(arguments, message, capsys)
    assert not list(tmp_path.iterdir())


def test_foreign_checkpoint(tmp_path, capsys):
    path = tmp_path / "foreign.pt"
    path.write_text("nothing of ours")
    assert_user_error(["eval", str(path)], re.escape(f"{path}: expected a checkpoint"), capsys)


@pytest.mark.parametrize("arguments", [["train", "simclr", "--nonsense"], ["train", "simclr"], ["eval"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.long
def test_importing_the_package_leaves_the_trainer_alone():
    code = (
        "import sys, ssl_fast; print([m for m in sys.modules if m.startswith(('ssl_fast.train', 'lightning', 'tyro'))])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


BAD_NUMBERS = [
    ("epochs", 0, "epochs: expected at least 1, got 0"),
    ("batch-size", 0, "batch_size: expected at least 1, got 0"),
    ("encoder", "small-6", "encoder: expected small-WIDTH of a multiple of 4 from 4, got 'small-6'"),
    ("encoder", "resnet19", "encoder: expected small-WIDTH, timm/NAME or one of resnet101, .* got 'resnet19'"),
    ("encoder", "timm/resnet", "encoder: timm has no model 'resnet'; it has "),
    ("encoder", "timm/resnet18,width=x", "encoder: expected timm/NAME,KEY=NUMBER, got 'width=x'"),
    ("stem", "cifar", "stem: expected imagenet, cifar is of a ResNet, got the encoder small-128"),
    ("view2.crop-scale", "0 1", "view2.crop_scale: expected a range of positive numbers up to 1, got"),
    ("view1.order", "crop crop", "view1.order: expected some of crop, affine, .* each once"),
    ("view1.flip-p", 2, "view1.flip_p: expected a probability from 0 to 1, got 2"),
    ("bn-groups", 3, "bn_groups: expected a divisor of the batch of 256, got 3"),
    ("milestones", "5 3", "milestones: expected rising epochs from 1"),
    ("devices", 0, "devices: expected at least 1, got 0"),
    ("projection-dim", 0, "projection_dim: expected at least 1, got 0"),
    ("queue-size", 0, "queue_size: expected at least 1, got 0"),
    ("temperature", 0, "temperature: expected"),
    ("momentum", 1.5, "momentum: expected a number from 0 to 1, got 1.5"),
    ("learning-rate", "nan", "learning_rate: expected a finite number from 0, got nan"),
    ("weight-decay", -1, "weight_decay: expected a finite number from 0, got -1.0"),
    ("seed", -1, "seed: expected at least 0, got -1"),
    ("seed", 2**63, "seed: expected less than"),
]


@pytest.mark.parametrize(("option", "value", "message"), BAD_NUMBERS)
def test_a_bad_number_is_named_and_nothing_is_written(option, value, message, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = ["train", "moco-v2-small", "--data", "digits", "--folder", str(folder), f"--{option}"]
    assert_user_error([*arguments, *str(value).split()], message, capsys)
    assert not folder.exists()


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    arguments = ["train", "simclr-small", "--data", "digits", "--folder", str(tmp_path / "run")]
    assert_user_error(arguments, "folder: expected a folder or a new name", capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_eval_of_other_weights(tmp_path, capsys, few_digits):
    training_loop.train("simclr-small", small_recipe("simclr-small", epochs=1), "digits", tmp_path)
    path = tmp_path / checkpoint.LAST
    contents = torch.load(path)
    good = contents["model"]
    contents["model"] = dict(list(good.items())[1:])
    torch.save(contents, path)
    assert_user_error(["eval", str(path)], "Encoder: Missing key", capsys)
    torch.save({**contents, "model": good, "recipe": None}, path)
    assert_user_error(["eval", str(path)], "written by another version", capsys)


def test_eval_writes_figures_and_a_map(tmp_path, capsys, few_digits):
    training_loop.train("moco-v2-small", small_recipe("moco-v2-small", epochs=1), "digits", tmp_path)
    path = str(tmp_path / checkpoint.LAST)
    words = [
        "--low-label",
        "--linear-epochs",
        "2",
        "--output",
        str(tmp_path / "out.json"),
        "--map",
        str(tmp_path / "m.png"),
    ]
    assert cli.main(["eval", path, *words]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    accuracies = [
        "knn_clean",
        "knn_transformed",
        "probe_clean",
        "probe_transformed",
        "probe_1%",
        "probe_10%",
        "linear_top1",
    ]
    assert all(0 <= found[name] <= 1 for name in accuracies)
    assert found["uniformity"] < 0 < found["alignment"]
    assert (found["recipe"], found["data"], found["epoch"]) == ("moco-v2-small", "digits", 1)
    assert (tmp_path / "m.png").stat().st_size > 1000
    assert "linear top1" in capsys.readouterr().out
    assert_user_error(["eval", path, "--k", "0"], "k: expected at least 1, got 0", capsys)
