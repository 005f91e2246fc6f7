"""Checkpoints: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from . import files
from .recipes import RECIPES

NAME = "checkpoint.pt"  # in the folder of a run
FORMAT = "ssl_fast checkpoint 1"
# recipe: a dict. epoch: epochs that are complete. step: steps done in the one after them, whose
# order of the training images is `order` and whose sums so far are `totals`. history: the log's rows.
KEYS = (
    *("method", "recipe", "data", "model", "optimizer", "scheduler"),
    *("epoch", "step", "order", "totals", "history", "torch_rng", "augmentation_rng", "order_rng"),
)


def save(path: str | Path, contents: dict[str, Any]) -> None:
    """Writes `contents` (the keys of KEYS) to `path`; an error leaves the old file as it was."""
    with files.replacing(path) as file:
        torch.save({"format": FORMAT, **contents}, file)


def load(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint, tensors on the CPU; `recipe` as an object of RECIPES.

    Raises FileNotFoundError where there is no such file, ValueError where it is damaged or not a
    checkpoint of this version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for files that are not its own
        raise ValueError(f"{path}: expected a checkpoint, cannot be read ({type(error).__name__})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or not contents.keys() >= set(KEYS):
        raise ValueError(f"{path}: expected a checkpoint of `ssl-fast train` ({FORMAT}), got another file")
    recipe_class: Any = RECIPES.get(contents["method"])
    fields = {field.name for field in dataclasses.fields(recipe_class)} if recipe_class else set()
    if not isinstance(contents["recipe"], dict) or contents["recipe"].keys() != fields:
        raise ValueError(f"{path}: written by another version of ssl_fast: {contents['method']} has other fields")
    return {**contents, "recipe": recipe_class(**contents["recipe"])}
