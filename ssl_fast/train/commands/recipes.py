"""`ssl-fast recipes`: lists the recipes, or prints one with all its numbers and their source."""

# No `from __future__ import annotations`: tyro reads the annotations.

import dataclasses
import inspect
from typing import Annotated

import tyro
import yaml
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from ..engine import config_file
from ..recipes import RECIPES, Recipe
from .exit_code import exit_code


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast recipes` with these arguments and returns its exit code."""
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
    print(yaml.safe_dump(config_file.plain(values), sort_keys=False), end="")


def _source(name: str, recipe: Recipe) -> list[str]:
    """Returns lines that say what a recipe is and where its numbers are from."""
    lines = inspect.cleandoc(type(recipe).__doc__ or "").splitlines()
    if not name.endswith("-small"):
        return lines
    return ["Ours: for digits and Fashion-MNIST on a CPU, in minutes. After: " + lines[0], *lines[1:]]
