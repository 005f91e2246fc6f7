"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..recipes import RECIPES, View
from .settings import Settings

# In the folder of a run: after every epoch; of the best kNN accuracy so far.
LAST, BEST = "last.pt", "best.pt"
FORMAT = "ssl_fast checkpoint 2"
# recipe, settings: dicts. images, channels, image_size: of the training data. epoch: epochs that are complete.
# step: steps done in the one after them, whose sums so far are `totals`, a row a process. history: the log's rows.
# best: of kNN. rng: torch's generators, a dict a process.
KEYS = (
    *("recipe_name", "recipe", "settings", "data", "images", "channels", "image_size"),
    *("model", "optimizer", "scheduler", "scaler", "epoch", "step", "totals", "history", "best", "rng"),
)


def save(path: str | Path, contents: dict[str, Any]) -> None:
    """Writes `contents` (the keys of KEYS) to `path`; an error leaves the old file as it was."""
    with files.replacing(path) as file:
        try:
            torch.save({"format": FORMAT, **contents}, file)
        except RuntimeError as error:
            # torch's writer hides what the file said, which may be that the disk is full.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def load(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU; `recipe` and `settings` as objects.

    Raises FileNotFoundError where there is no such file, ValueError where it is damaged or not a
    checkpoint of this version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    contents = files.read_tensors(path)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or not contents.keys() >= set(KEYS):
        raise ValueError(f"{path}: expected a checkpoint of `ssl-fast train` ({FORMAT}), got another file")
    default = RECIPES.get(contents["recipe_name"])
    try:
        recipe = _object(type(default), contents["recipe"])
        settings = _object(Settings, contents["settings"])
    except (TypeError, AttributeError) as error:
        name = contents["recipe_name"]
        raise ValueError(f"{path}: written by another version of ssl_fast, in which {name} has other fields") from error
    return {**contents, "recipe": recipe, "settings": settings}


def _object(kind: Any, values: dict[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    if values.keys() != fields:
        raise TypeError(f"expected the fields {fields}, got {set(values)}")
    return kind(**{name: View(**value) if isinstance(value, dict) else value for name, value in values.items()})
