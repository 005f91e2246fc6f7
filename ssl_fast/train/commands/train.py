"""`ssl-fast train` and `ssl-fast recipes`."""

# No `from __future__ import annotations`: tyro reads the annotations, some of which are made here.

import argparse
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import tyro
import yaml
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from . import checkpoint, config, loop
from .command import exit_code
from .recipes import RECIPES, Recipe
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
        if not dist.is_initialized() or dist.get_rank() == 0:
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
            table.add_row(known, _source(known, recipe)[0])
        Console().print(table)
        return
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    for line in _source(name, RECIPES[name]):
        print(f"# {line}".rstrip())
    values = {"recipe": name, **dataclasses.asdict(RECIPES[name])}
    print(yaml.safe_dump(config.plain(values), sort_keys=False), end="")


def _source(name: str, recipe: Recipe) -> list[str]:
    """What a recipe is and where it is from, in lines."""
    lines = inspect.cleandoc(type(recipe).__doc__ or "").splitlines()
    if not name.endswith("-small"):
        return lines
    return ["Ours: for digits and Fashion-MNIST on a CPU, in minutes. After: " + lines[0], *lines[1:]]
