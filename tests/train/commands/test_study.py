"""Studies: each one's variants can run, the files say what was done, and a stopped one goes on."""

import dataclasses
import json
import re
import statistics

import pytest

from ssl_fast.tools import cli
from ssl_fast.train.commands import study as studies
from ssl_fast.train.engine import training_loop
from ssl_fast.train.recipes import RECIPES
from tests.helpers.small_runs import SMALL

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Batches that the few digits fill."""
    for name, recipe in RECIPES.items():
        small = dataclasses.replace(recipe, batch_size=SMALL["batch_size"])
        monkeypatch.setitem(RECIPES, name, small)


@pytest.mark.parametrize("name", studies.STUDIES)
def test_all_variants_differ_and_can_run(name):
    asked = studies.STUDIES[name]
    recipes = [dataclasses.replace(RECIPES[recipe], **changes) for recipe, changes in asked.variants.values()]
    for recipe in recipes:
        recipe.check()
    assert len({(type(recipe), str(recipe)) for recipe in recipes}) == len(recipes)
    assert asked.question.endswith(".")


def test_a_study_writes_what_it_measured_and_goes_on(tmp_path, monkeypatch, capsys):
    arguments = ["study", "head", "--seeds", "2", "--epochs", "1", "--encoder", "small-8", "--folder", str(tmp_path)]
    train, calls = training_loop.train, []

    def stopped_in_the_fourth_run(*given, **options):
        calls.append(given[3].name)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*given, **options)

    monkeypatch.setattr(training_loop, "train", stopped_in_the_fourth_run)
    assert cli.main(arguments) == 130
    assert not (tmp_path / "results.json").exists()
    assert cli.main(arguments) == 0
    assert calls == ["none-0", "linear-0", "nonlinear-0", "none-1", "none-1", "linear-1", "nonlinear-1"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"] == "ssl-fast study head --data digits --seeds 2 --epochs 1 --encoder small-8"
    assert list(results["results"]) == ["none", "linear", "nonlinear"]
    table = (tmp_path / "results.md").read_text()
    for label, runs in results["results"].items():
        assert len(runs) == 2
        mean = 100 * statistics.fmean(run["knn_clean"] for run in runs)
        assert f"| {label} | {mean:.1f} ± " in table
    assert (tmp_path / "study.png").stat().st_size
    assert "results.md" in capsys.readouterr().out


def test_baselines_stand_beside_the_methods(tmp_path):
    arguments = ["study", "methods", "--seeds", "1", "--epochs", "1", "--encoder", "small-8", "--folder", str(tmp_path)]
    assert cli.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["raw pixels", "untrained", "simclr", "moco-v1", "moco-v2", "moco-v3", "instdisc"]
    assert all(0 < runs[0]["knn_clean"] <= 1 for runs in results.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "colour"], "NAME: expected one of methods, augmentation, .* got 'colour'"),
        (["study", "head", "--seeds", "0"], "seeds: expected at least 1, got 0"),
    ],
)
def test_user_errors(arguments, message, capsys):
    assert cli.main(arguments) == 2

    assert re.search(message, capsys.readouterr().err)
