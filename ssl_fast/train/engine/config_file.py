"""A run's configuration as a file: what the command line would say, in YAML."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
import yaml

from ...version import __version__
from .. import files
from ..recipes import Recipe
from .settings import Settings

NAME = "config.yaml"  # in the folder of a run


def save(folder: Path, recipe_name: str, recipe: Recipe, data: str, settings: Settings) -> None:
    """Writes config.yaml, which `ssl-fast train --config` reads: every field, also those left at their default."""
    modules = {"torch": torch, "torchvision": torchvision, "lightning": lightning}
    versions = {name: str(module.__version__) for name, module in modules.items()}
    values = {
        "recipe": recipe_name,
        "data": data,
        **plain(dataclasses.asdict(recipe)),
        **plain(dataclasses.asdict(settings)),
        "versions": {"ssl_fast": __version__, "python": platform.python_version(), **versions},
    }
    files.write_text(folder / NAME, yaml.safe_dump(values, sort_keys=False))


def load(path: str | Path) -> tuple[str | None, list[str]]:
    """The recipe's name, if the file has one, and the words that give the file's other values on the command line.

    Raises FileNotFoundError, or ValueError where it is not a mapping in YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config: {path} is no file")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is no YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"config: expected names and values in {path}, got {type(values).__name__}")
    name = values.pop("recipe", None)
    values.pop("versions", None)
    return None if name is None else str(name), arguments(values)


def arguments(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The words of the command line that set these values."""
    words: list[str] = []
    for name, value in values.items():
        option = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, dict):
            words += arguments(value, f"{option}.")
        elif isinstance(value, bool):
            *groups, last = option.split(".")
            words.append("--" + ".".join([*groups, last if value else f"no-{last}"]))
        elif isinstance(value, (list, tuple)):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return words


def plain(value: Any) -> Any:
    """The value without tuples, which YAML does not know."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value
