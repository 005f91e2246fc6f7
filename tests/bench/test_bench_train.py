"""The comparison of trainings with lightly at toy size, so that it does not rot; figures are not judged here."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("lightly", reason="lightly is not installed")

from bench import __main__ as command
from bench import train
from ssl_fast.train import data, recipes
from ssl_fast.train.data.batches import Batches


@pytest.fixture
def small(monkeypatch):
    """Recipes and digits small enough for a test."""
    digits = data.load("digits")
    few = {f"{part}_{kind}": getattr(digits, f"{part}_{kind}")[:96]
           for part in ("train", "test") for kind in ("images", "labels")}  # fmt: skip
    monkeypatch.setattr(data, "load", lambda spec: dataclasses.replace(digits, **few))
    for name, extra in (("simclr-small", {}), ("moco-v2-small", {"queue_size": 64})):
        recipe = dataclasses.replace(recipes.RECIPES[name], encoder="small-8", projection_dim=8, **extra)
        monkeypatch.setitem(recipes.RECIPES, name, recipe)
    monkeypatch.setattr(train.measure, "limits", lambda threads: {"sgemm": 1.0, "copy": 1.0})


def test_the_command_writes_its_tables(small, tmp_path, monkeypatch, capsys):
    numbers = {"epochs": 2, "batch-size": 32, "seeds": 1, "rounds": 3, "threads": torch.get_num_threads()}
    arguments = [f"--{name}={value}" for name, value in numbers.items()]
    monkeypatch.setattr("sys.argv", ["bench", "train", *arguments, f"--output={tmp_path}"])
    command.main()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["machine"]["lightly"]
    assert saved["machine"]["commit"]
    timed = {(row["name"], row["part"]): row for row in saved["rows"] if row["suite"] == "train step"}
    assert set(timed) == {
        ("simclr-small", "step"), ("simclr-small", "step with its data"), ("simclr-small", "loss"),
        ("moco-v2-small", "step"), ("moco-v2-small", "step with its data"), ("moco-v2-small", "loss, EMA and queue"),
    }  # fmt: skip
    for row in timed.values():
        ratio, low, high = row["ratio"]["lightly"]
        assert 0 < low <= ratio <= high
    text = (tmp_path / "results.md").read_text()
    assert text in capsys.readouterr().out
    assert text == train.markdown(saved)
    for expected in ("| simclr-small | 32 | loss |", "lightly, one batch", "| moco-v2-small | 2 | 1 | knn clean |"):
        assert expected in text


@pytest.mark.parametrize(("name", "other"), [("simclr-small", train.ONE_BATCH), ("moco-v2-small", "lightly")])
def test_both_train_alike(small, name, other):
    """From the same weights on the same views: the losses and the weights of four steps, two rounds of the queue."""
    recipe = dataclasses.replace(recipes.RECIPES[name], batch_size=32, warm_up_epochs=0.0)
    dataset = data.load("digits")
    modules = train.modules(recipe, dataset)
    trainings = {who: train.Training(modules[who], recipe, 3) for who in ("ssl_fast", other)}
    for who, training in trainings.items():
        batches = train.endless(Batches(dataset, recipe, "cpu"))
        for _ in range(4):
            training.step(next(batches))
        assert len(training.losses) == 4, who
    ours, theirs = trainings["ssl_fast"], trainings[other]
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        list(ours.module.encoder.parameters()), list(theirs.module.encoder.parameters()), rtol=1e-2, atol=1e-3
    )
    if name == "moco-v2-small":
        bank = theirs.module.criterion.memory_bank
        torch.testing.assert_close(ours.module.method.queue.queue, bank.bank, rtol=1e-3, atol=1e-3)
        assert int(ours.module.method.queue.queue_ptr) == int(bank.bank_ptr) == 0


def test_steps_alternate_in_a_turning_order():
    order = []
    runs = {name: (lambda: None, lambda given, name=name: order.append(name)) for name in "ab"}
    alone, prepared = train.alternating(runs, rounds=2, warm_up=1)
    assert "".join(order) == "abbaab"
    assert {len(times) for times in (*alone.values(), *prepared.values())} == {2}
    assert all(a <= b for name in "ab" for a, b in zip(alone[name], prepared[name], strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "moco-v3-small"], "methods: expected some of"),
        (["--methods", "moco-v2"], "bn_group"),
        (["--batch-size", "96"], "batch_size: expected a divisor of the queue of 512, got 96"),
        (["--seeds", "-1"], "--seeds: expected at least 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train.main(arguments)
    assert message in capsys.readouterr().err
