"""`ssl-fast train` and `ssl-fast eval`, as a user types them."""

import dataclasses
import re
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from conftest import SMALL

from ssl_fast import cli
from ssl_fast.train import checkpoint, loop
from ssl_fast.train.recipes import RECIPES

METHODS = tuple(RECIPES)


def options(**fields):
    return [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def assert_user_error(arguments, message, capsys):
    capsys.readouterr()
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith(f"ssl-fast {arguments[0]}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("method_name", METHODS)
def test_train_interrupt_resume_eval(method_name, tmp_path, monkeypatch, capsys, few_digits):
    monkeypatch.chdir(tmp_path)
    step = loop.Run._train_step

    def step_then_interrupt(run, indices):
        step(run, indices)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_train_step", step_then_interrupt)
    fields = {**SMALL, "epochs": 1, "temperature": 0.3, "seed": 5}
    assert cli.main(["train", method_name, "--data", "digits", *options(**fields)]) == 130
    command = next(line for line in capsys.readouterr().err.splitlines() if "--resume" in line)
    monkeypatch.setattr(loop.Run, "_train_step", step)

    assert cli.main(shlex.split(command)[1:]) == 0
    path = f"runs/{method_name}-digits/{checkpoint.NAME}"
    assert capsys.readouterr().out.splitlines()[-1] == f"ssl-fast eval {path}"
    contents = checkpoint.load(path)
    assert contents["epoch"] == 1
    assert {name: getattr(contents["recipe"], name) for name in fields} == fields

    assert cli.main(["eval", path]) == 0
    table = capsys.readouterr().out
    figures = re.search(rf"{method_name} +│ +([\d.]+) │ +([\d.]+) │ +([\d.]+) │ +([\d.]+) ", table).groups()
    # The row's figures are those of the checkpoint's own encoder: the last of the log.
    assert float(figures[0]) == pytest.approx(contents["history"][-1]["knn_clean"], abs=5e-4)
    assert float(figures[1]) == pytest.approx(contents["history"][-1]["knn_transformed"], abs=5e-4)


def test_every_recipe_field_is_an_option(monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "train", lambda *arguments: calls.append(arguments))
    for name, recipe_class in RECIPES.items():
        changed = {field.name: field.default * 2 if field.default else 3 for field in dataclasses.fields(recipe_class)}
        assert cli.main(["train", name, "--data", "fashion-mnist:there", "--folder", "here", *options(**changed)]) == 0
        method_name, recipe, dataset_spec, folder, resume = calls.pop()
        assert recipe == recipe_class(**changed)
        assert (method_name, dataset_spec, str(folder), resume) == (name, "fashion-mnist:there", "here", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "simclr", "--data", "cifar"], "data: expected digits, fashion-mnist .* got 'cifar'"),
        (["train", "simclr", "--data", "fashion-mnist:nowhere"], "nowhere"),
        (["train", "simclr", "--data", "digits", "--resume"], r"checkpoint\.pt: no such checkpoint"),
        (["train", "simclr", "--data", "digits", "--batch-size", "100000"], "batch_size: .* got 100000"),
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


@pytest.mark.parametrize("arguments", [["train", "byol", "--data", "digits"], ["train", "simclr"], ["eval"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err


def test_importing_the_package_leaves_the_trainer_alone():
    code = (
        "import sys, ssl_fast; print([m for m in sys.modules if m.startswith(('ssl_fast.train', 'lightning', 'tyro'))])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


BAD_NUMBERS = [
    ("epochs", 0, "epochs: expected at least 1, got 0"),
    ("batch-size", 0, "batch_size: expected at least 1, got 0"),
    ("width", 0, "width: expected at least 4, got 0"),
    ("width", 6, "width: expected a multiple of 4, got 6"),
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
    arguments = ["train", "moco-v2", "--data", "digits", "--folder", str(folder), f"--{option}", str(value)]
    assert_user_error(arguments, message, capsys)
    assert not folder.exists()


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    arguments = ["train", "simclr", "--data", "digits", "--folder", str(tmp_path / "run")]
    assert_user_error(arguments, "folder: expected a folder or a new name", capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_eval_of_other_weights(tmp_path, capsys, few_digits):
    loop.train("simclr", RECIPES["simclr"](**{**SMALL, "epochs": 1}), "digits", tmp_path)
    path = tmp_path / checkpoint.NAME
    contents = torch.load(path)
    good = contents["model"]
    contents["model"] = dict(list(good.items())[1:])
    torch.save(contents, path)
    assert_user_error(["eval", str(path)], "expected the weights of simclr", capsys)
    torch.save({**contents, "model": good, "recipe": None}, path)
    assert_user_error(["eval", str(path)], "written by another version", capsys)
