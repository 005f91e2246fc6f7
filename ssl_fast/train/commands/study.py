"""`ssl-fast study`: small versions of the papers' ablations, and a comparison of the five methods."""

# No `from __future__ import annotations`: tyro reads the annotations.

import dataclasses
import json
import math
import shlex
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn
from tyro.conf import Positional, arg

from .. import files
from ..data import datasets
from ..engine import checkpoint, training_loop
from ..engine.settings import Settings
from ..evaluation import plots, report
from ..models.encoders import create
from ..recipes import RECIPES, Recipe, small
from ..recipes.view import Operation
from .exit_code import exit_code

MEASURES = {"knn_clean": "kNN", "knn_transformed": "kNN, transformed", "probe_clean": "linear"}
Changes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Args:
        question: What is asked, and what the paper found.
        setting: The name of what is varied, for table and plot.
        variants: By label, the name of a recipe and its changed fields.
        baselines: Whether raw pixels and an untrained encoder are measured as well.
    """

    question: str
    setting: str
    variants: Mapping[str, tuple[str, Changes]]
    baselines: bool = False


def _of(recipe: str, field: str, values: tuple[Any, ...]) -> dict[str, tuple[str, Changes]]:
    return {str(value): (recipe, {field: value}) for value in values}


def _views(*order: Operation) -> tuple[str, Changes]:
    one = dataclasses.replace(small.VIEW, order=order)
    return "simclr-small", {"view1": one, "view2": one}


STUDIES: dict[str, Study] = {
    "methods": Study(
        "What the features of each method are worth, beside raw pixels and an untrained encoder.",
        "method",
        {name.removesuffix("-small"): (name, {}) for name in RECIPES if name.endswith("-small")},
        baselines=True,
    ),
    "augmentation": Study(
        "Does one augmentation do? SimCLR (Chen et al. 2020, figure 5): no, only their composition.",
        "augmentation",
        {
            "position": _views("affine"),
            "light": _views("jitter"),
            "noise": _views("noise"),
            "light + noise": _views("jitter", "noise"),
            "position + light + noise": _views("affine", "jitter", "noise"),
        },
    ),
    "head": Study(
        "Does a projection head help? SimCLR (Chen et al. 2020, figure 8): nonlinear > linear > none.",
        "projection head",
        {
            "none": ("simclr-small", {"head_layers": 0}),
            "linear": ("simclr-small", {"head_layers": 1}),
            "nonlinear": ("simclr-small", {}),
        },
    ),
    "temperature": Study(
        "Which temperature? SimCLR (Chen et al. 2020, table 5): 0.1 of 0.05 to 1.",
        "temperature",
        _of("simclr-small", "temperature", (0.05, 0.1, 0.2, 0.5, 1.0)),
    ),
    "batch-size": Study(
        "Do larger batches help? SimCLR (Chen et al. 2020, figure 9): yes, the more the fewer the epochs.",
        "batch size",
        _of("simclr-small", "batch_size", (32, 64, 128, 256, 512)),
    ),
    "queue": Study(
        "Does a longer queue help? MoCo (He et al. 2020, figure 3): yes, up to 65536 on 1.3 million images.",
        "queue",
        _of("moco-v2-small", "queue_size", (32, 128, 512, 1024)),
    ),
    "momentum": Study(
        "Which momentum? MoCo (He et al. 2020, section 4.1): a slow key encoder; 0 fails.",
        "momentum",
        _of("moco-v2-small", "momentum", (0.0, 0.5, 0.9, 0.99, 0.999)),
    ),
}


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast study` with these arguments and returns its exit code."""
    return exit_code("study", lambda: tyro.cli(study, prog="ssl-fast study", args=arguments))


def study(
    name: Annotated[Positional[str], arg(metavar="NAME")],
    data_spec: Annotated[str, arg(name="data", metavar="DATA")] = "digits",
    seeds: int = 3,
    epochs: int | None = None,
    encoder: str | None = None,
    folder: Path | None = None,
) -> None:
    """Train the variants of a study with several seeds; save a table and a plot. It goes on where it was stopped.

    Args:
        name: methods, augmentation, head, temperature, batch-size, queue or momentum.
        data_spec: As ssl-fast train takes it.
        seeds: Runs of each variant, with the seeds 0, 1, ...
        epochs: Of every run; as in the recipes unless given.
        encoder: Of every run; as in the recipes unless given.
        folder: Where all goes; runs/study-NAME-DATA unless given.
    """
    if name not in STUDIES:
        raise ValueError(f"NAME: expected one of {', '.join(STUDIES)}, got {name!r}")
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    asked = STUDIES[name]
    folder = folder or Path("runs", f"study-{name}-{data_spec.partition(':')[0]}")
    dataset = datasets.load(data_spec)
    for_all: Changes = {
        option: value for option, value in (("epochs", epochs), ("encoder", encoder)) if value is not None
    }
    rows: dict[str, list[dict[str, float]]] = {}
    if asked.baselines:
        recipe = dataclasses.replace(RECIPES["simclr-small"], **for_all)
        rows["raw pixels"] = [_kept(folder / "rawpixels", lambda: _measured(nn.Flatten(), recipe, dataset))]
        rows["untrained"] = [
            _kept(folder / f"untrained-{seed}", partial(_untrained, seed, recipe, dataset)) for seed in range(seeds)
        ]
    for seed in range(seeds):
        for label, (recipe_name, changes) in asked.variants.items():
            recipe = dataclasses.replace(RECIPES[recipe_name], seed=seed, **{**for_all, **changes})
            run_folder = folder / f"{label.replace(' ', '')}-{seed}"
            run = partial(_trained, recipe_name, recipe, data_spec, dataset, run_folder)
            rows.setdefault(label, []).append(_kept(run_folder, run))
    words = ["ssl-fast", "study", name, "--data", data_spec.partition(":")[0], "--seeds", str(seeds)]
    words += [word for option, value in for_all.items() for word in (f"--{option}", str(value))]
    _save(folder, shlex.join(words), asked, rows)


def _kept(folder: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Returns what `measure` returns and saves it in the folder; if the folder has it already, reads it."""
    path = folder / report.RESULTS
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        report.save_results(folder, {"measured": measure()})
    found: dict[str, float] = json.loads(path.read_text())["measured"]
    return found


def _trained(name: str, recipe: Recipe, data_spec: str, dataset: Any, folder: Path) -> dict[str, float]:
    resume = (folder / checkpoint.LAST).exists()
    # The run is measured only in its first and its last epoch, since a study draws no curve.
    settings = Settings(evaluate_every=recipe.epochs)
    method = training_loop.train(name, recipe, data_spec, folder, settings, resume)
    seconds = sum(recipe.batch_size * _steps(recipe, dataset) / row["images_per_second"] for row in _history(folder))
    return {**_measured(method.encoder, recipe, dataset), "seconds": round(seconds, 1)}


def _steps(recipe: Recipe, dataset: Any) -> int:
    return int(dataset.train_count // recipe.batch_size // recipe.accumulate * recipe.accumulate)


def _history(folder: Path) -> list[dict[str, Any]]:
    return list(checkpoint.load(folder / checkpoint.LAST)["history"])


def _untrained(seed: int, recipe: Recipe, dataset: Any) -> dict[str, float]:
    torch.manual_seed(seed)
    encoder, _ = create(recipe.encoder, dataset.channels, recipe.stem, recipe.image_size or dataset.image_size)
    return _measured(encoder, recipe, dataset)


def _measured(encoder: nn.Module, recipe: Recipe, dataset: Any) -> dict[str, float]:
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    options: dict[str, Any] = {"image_size": recipe.image_size, "views": recipe.views}
    return report.accuracies(encoder, dataset, recipe.normalize_images, device, ("knn", "probe"), **options)


def _save(folder: Path, command: str, asked: Study, rows: dict[str, list[dict[str, float]]]) -> None:
    """Writes results.json, results.md and study.png, and prints the table."""
    contents = {"command": command, "question": asked.question, "results": rows}
    files.write_text(folder / report.RESULTS, json.dumps(contents, indent=1) + "\n")
    columns = {key: heading for key, heading in MEASURES.items() if all(key in row for row in rows[next(iter(rows))])}
    cells = {label: [_mean_and_spread([run[key] for run in runs]) for key in columns] for label, runs in rows.items()}
    table = Table(asked.setting, *columns.values(), title=asked.question)
    lines = [f"{asked.question}", "", f"`{command}`", ""]
    lines += [f"| {asked.setting} | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for label, values in cells.items():
        table.add_row(label, *values)
        lines.append(f"| {label} | {' | '.join(values)} |")
    files.write_text(folder / "results.md", "\n".join(lines) + "\n")
    figures = {label: [run["knn_clean"] for run in runs] for label, runs in rows.items()}
    plots.study(figures, folder / "study.png", "kNN accuracy", asked.setting)
    Console().print(table)
    print(f"In {folder}: results.json, results.md, study.png")


def _mean_and_spread(values: list[float]) -> str:
    """Returns the mean and the sample standard deviation, in per cent."""
    mean = 100 * statistics.fmean(values)
    if len(values) == 1 or math.isnan(mean):
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}"
