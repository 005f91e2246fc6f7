"""A thin trainer around the losses.

    from ssl_fast.train import RECIPES, train

    method = train("simclr-small", RECIPES["simclr-small"], "digits", "runs/mine")
    features = method.encoder(images)

Its rooms, from the one that imports nothing of the others to the one that imports them all:

    recipes     what each method is trained with, a file a method: every published number and its source
    data        data sets, batches, and the random views of images
    models      encoders, batch norm in groups, the methods, facebookresearch/moco's checkpoints
    evaluation  kNN, linear probes, alignment and uniformity; tables and plots
    engine      a run: its state, its steps, its checkpoints, logs and files
    commands    what `ssl-fast` runs, a file a subcommand
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import load as load_dataset
    from .engine.checkpoint import load as load_checkpoint
    from .engine.export_formats import encoder_of
    from .engine.settings import Settings
    from .engine.training_loop import train
    from .evaluation.metrics import knn_accuracy
    from .evaluation.report import accuracies
    from .models import build as build_method
    from .models import create as create_encoder
    from .recipes import RECIPES, Recipe, View

__all__ = [
    "RECIPES",
    "Recipe",
    "View",
    "load_dataset",
    "create_encoder",
    "build_method",
    "Settings",
    "train",
    "load_checkpoint",
    "encoder_of",
    "accuracies",
    "knn_accuracy",
]

# Each name is imported when it is first asked for: data sets and measures are then to be had without Lightning.
_HOMES = {
    "RECIPES": (".recipes", "RECIPES"),
    "Recipe": (".recipes", "Recipe"),
    "View": (".recipes", "View"),
    "load_dataset": (".data", "load"),
    "create_encoder": (".models", "create"),
    "build_method": (".models", "build"),
    "Settings": (".engine.settings", "Settings"),
    "train": (".engine.training_loop", "train"),
    "load_checkpoint": (".engine.checkpoint", "load"),
    "encoder_of": (".engine.export_formats", "encoder_of"),
    "accuracies": (".evaluation.report", "accuracies"),
    "knn_accuracy": (".evaluation.metrics", "knn_accuracy"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module, __name__), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
