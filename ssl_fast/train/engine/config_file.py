"""The recipe and the settings of a run as config.yaml, which can be given to the command line again."""

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
    """Writes config.yaml, which `ssl-fast train --config` reads, with every field and the versions of the libraries."""
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
    """Reads a config.yaml, or a file like it with some of the fields.

    Returns:
        The recipe's name, None if the file has none, and the other values as words of the command line.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no mapping in YAML.
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
    """Returns the words of the command line that set these values."""
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
    """Returns the value with lists for tuples, which YAML does not have."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (tuple, list)) else value
