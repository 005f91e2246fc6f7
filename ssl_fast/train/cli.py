"""`ssl-fast train`, `ssl-fast eval` and `ssl-fast recipes`."""

# No `from __future__ import annotations`: tyro reads the annotations, some of which are made here.

import argparse
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import tyro
import yaml
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from . import checkpoint, config, data, loop, report
from .command import exit_code
from .methods import build
from .recipes import RECIPES
from .settings import Settings


def train_main(arguments: list[str]) -> int:
    """`ssl-fast train`: 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
    return exit_code("train", lambda: _train(arguments))


def _train(arguments: list[str]) -> None:
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config", type=Path)
    asked, rest = reader.parse_known_args(arguments)
    named, words = config.load(asked.config) if asked.config else (None, [])
    name = rest.pop(0) if rest and not rest[0].startswith("-") else named
    if named not in (None, name):
        raise ValueError(f"recipe: expected {named} as in {asked.config}, got {name}")
    if name not in RECIPES:
        raise ValueError(
            f"recipe: expected ssl-fast train RECIPE, one of {', '.join(RECIPES)}"
            + ("" if name is None else f"; got {name!r}")
        )
    # What the command line says comes after what the file says, and holds.
    tyro.cli(_train_command(name), prog=f"ssl-fast train {name}", args=words + rest)


def _train_command(recipe_name: str) -> Callable[..., None]:
    default = RECIPES[recipe_name]

    def command(
        data: str,
        recipe: Annotated[type(default), arg(name="")] = default,  # type: ignore[valid-type]
        settings: Annotated[Settings, arg(name="")] = Settings(),  # noqa: B008 (frozen)
        folder: Path | None = None,
        resume: bool = False,
    ) -> None:
        """Train an encoder. --config FILE takes any of these options from a YAML file.

        Args:
            data: digits, fashion-mnist, cifar10, cifar100, stl10 (downloaded once), or NAME:FOLDER, imagefolder:FOLDER.
            recipe: What to train with.
            settings: How.
            folder: Where checkpoints, config and logs go; runs/RECIPE-DATA unless given.
            resume: Go on from the folder's last checkpoint.
        """
        folder = folder or Path("runs", f"{recipe_name}-{data.partition(':')[0]}")
        loop.train(recipe_name, recipe, data, folder, settings, resume)
        print(f"ssl-fast eval {folder / checkpoint.LAST}")

    return command


def recipes_main(arguments: list[str]) -> int:
    """`ssl-fast recipes [NAME]`: the names, or one with all its numbers and their source."""
    return exit_code("recipes", lambda: tyro.cli(_recipes, prog="ssl-fast recipes", args=arguments))


def _recipes(name: Annotated[Positional[str | None], arg(metavar="NAME")] = None) -> None:
    """List the recipes, or print one: its source and its numbers, as a file for `ssl-fast train --config`.

    Args:
        name: The recipe to print.
    """
    if name is None:
        table = Table("recipe", "what it is", box=None)
        for known, recipe in RECIPES.items():
            first = inspect.cleandoc(type(recipe).__doc__ or "").splitlines()[0]
            size = "Ours: for digits and Fashion-MNIST on a CPU, in minutes. After: "
            table.add_row(known, (size if known.endswith("-small") else "") + first)
        Console().print(table)
        return
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    for line in inspect.cleandoc(type(RECIPES[name]).__doc__ or "").splitlines():
        print(f"# {line}".rstrip())
    values = {"recipe": name, **dataclasses.asdict(RECIPES[name])}
    print(yaml.safe_dump(config.plain(values), sort_keys=False), end="")


def eval_main(arguments: list[str]) -> int:
    """`ssl-fast eval`: 0, or 2 after an error that the user can mend."""
    return exit_code("eval", lambda: tyro.cli(_evaluate, prog="ssl-fast eval", args=arguments))


def _evaluate(
    path: Annotated[Positional[Path], arg(metavar="CHECKPOINT")],
    data_spec: Annotated[str | None, arg(name="data", metavar="DATA")] = None,
) -> None:
    """kNN and linear-probe accuracy of a checkpoint's encoder.

    Args:
        path: A checkpoint (last.pt, best.pt) that ssl-fast train wrote.
        data_spec: Other data than it was trained on, e.g. fashion-mnist:FOLDER.
    """
    contents = checkpoint.load(path)
    dataset = data.load(data_spec or contents["data"])
    recipe, name = contents["recipe"], contents["recipe_name"]
    method = build(recipe, contents["channels"], contents["image_size"], contents["images"])
    try:
        method.load_state_dict(contents["model"])
    except RuntimeError as error:  # torch lists every weight that does not fit
        raise ValueError(f"{path}: expected the weights of {name}, got others") from error
    if dataset.channels != contents["channels"]:
        raise ValueError(f"data: expected {contents['channels']} channels as trained, got {dataset.channels}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = report.accuracies(
        method.encoder.to(device), dataset, recipe.normalize_images, device,
        image_size=recipe.image_size, views=recipe.views,
    )  # fmt: skip
    Console().print(report.table({name: figures}, f"{name} on {dataset.name}, epoch {contents['epoch']}"))
