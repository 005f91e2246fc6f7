"""`ssl-fast train`: trains a recipe on data, with any of its numbers changed."""

# No `from __future__ import annotations`: tyro reads the annotations, some of which are made here.

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import tyro
from tyro.conf import arg

from ..engine import checkpoint, config_file, training_loop
from ..engine.settings import Settings
from ..recipes import RECIPES
from .exit_code import exit_code


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast train` with these arguments and returns its exit code."""
    return exit_code("train", lambda: _train(arguments))


def _train(arguments: list[str]) -> None:
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config", type=Path)
    asked, rest = reader.parse_known_args(arguments)
    named, words = config_file.load(asked.config) if asked.config else (None, [])
    name = rest.pop(0) if rest and not rest[0].startswith("-") else named
    if named not in (None, name):
        raise ValueError(f"recipe: expected {named} as in {asked.config}, got {name}")
    if name not in RECIPES:
        raise ValueError(
            f"recipe: expected ssl-fast train RECIPE, one of {', '.join(RECIPES)}"
            + ("" if name is None else f"; got {name!r}")
        )
    # tyro takes the last value of an option, so the command line overrules the file.
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
            settings: Where and how fast.
            folder: Where checkpoints, config and logs go; runs/RECIPE-DATA unless given.
            resume: Go on from the folder's last checkpoint.
        """
        folder = folder or Path("runs", f"{recipe_name}-{data.partition(':')[0]}")
        training_loop.train(recipe_name, recipe, data, folder, settings, resume)
        if not dist.is_initialized() or dist.get_rank() == 0:
            print(f"ssl-fast eval {folder / checkpoint.LAST}")

    return command
