"""The demo of `make demo`, `python -m ssl_fast.train.commands.demo`: SimCLR and MoCo v2 learn scikit-learn's digits."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import nn

from .. import files
from ..data import datasets
from ..data.batch_augmentation import Augment
from ..engine import checkpoint, training_loop
from ..engine.settings import Settings
from ..evaluation import plots, report
from ..evaluation.features import encode
from ..models.encoders import create
from ..recipes import RECIPES, small

LABELS = {"simclr-small": "SimCLR", "moco-v2-small": "MoCo v2"}
# The recipes train for as long as it helps. The demo takes more, smaller steps, and reaches their accuracy sooner.
SHORTER: dict[str, dict[str, Any]] = {
    "simclr-small": {"batch_size": 64, "epochs": 40},
    "moco-v2-small": {"batch_size": 64, "epochs": 60},
}
# On a CPU convolutions of few channels are faster where these come last.
SETTINGS = Settings(channels_last=True)
SHOWN_PAIRS = 10


def demo(seed: int = 0, epochs: int | None = None, folder: Path = Path("runs/demo")) -> None:
    """Train SimCLR and MoCo v2 on handwritten digits and compare what their encoders see.

    Args:
        seed: Of initialisation, augmentation and order.
        epochs: For both methods; 40 for SimCLR and 60 for MoCo v2 unless given.
        folder: Where pictures, results.json and the runs go.
    """
    started = time.monotonic()
    dataset = datasets.load("digits")
    assert isinstance(dataset, datasets.Dataset)
    encoders: dict[str, Any] = {"raw pixels": nn.Flatten(), "untrained encoder": None}
    histories = {}
    for name, label in LABELS.items():
        recipe = dataclasses.replace(RECIPES[name], seed=seed, **SHORTER[name])
        if epochs is not None:
            recipe = dataclasses.replace(recipe, epochs=epochs)
        if encoders["untrained encoder"] is None:
            torch.manual_seed(seed)
            encoders["untrained encoder"] = create(recipe.encoder, dataset.channels, recipe.stem, dataset.image_size)[0]
        # The demo trains from the start each time, so an earlier run's checkpoint must not stop it.
        path = folder / name / checkpoint.LAST
        path.unlink(missing_ok=True)
        print(f"Training {label} on {len(dataset.train_images)} digits, {recipe.epochs} epochs")
        encoders[label] = training_loop.train(name, recipe, "digits", folder / name, SETTINGS).encoder.cpu()
        histories[label] = checkpoint.load(path)["history"]
    rows = {label: report.accuracies(encoder, dataset, False, "cpu") for label, encoder in encoders.items()}
    _draw(dataset, encoders, histories, seed, folder)
    results = {"seed": seed, "seconds": round(time.monotonic() - started, 1), "accuracies": rows}
    files.write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    title = "Test accuracy, digits as they are (clean) and randomly shifted, scaled, rotated"
    Console().print(report.table(rows, title))
    print(f"{results['seconds']:.0f} s. In {folder}: curves.png, pairs.png, maps.png, results.json, logs")


def _draw(
    dataset: datasets.Dataset, encoders: dict[str, Any], histories: dict[str, Any], seed: int, folder: Path
) -> None:
    augment = Augment(dataset, small.VIEW, normalize=False)
    generator = torch.Generator().manual_seed(seed)
    plots.curves(histories, folder / "curves.png")
    some = dataset.train_images[:SHOWN_PAIRS]
    view1, view2 = (augment(some, generator) for _ in range(2))
    plots.pairs(augment.plain(some), view1, view2, folder / "pairs.png")
    # The map shows transformed test images, since these are what invariant features tell apart and pixels do not.
    images = augment.transform_test(dataset.test_images, generator)
    shown = {label: encoder for label, encoder in encoders.items() if label != "raw pixels"}
    features = {label: encode(encoder, images) for label, encoder in shown.items()}
    plots.maps(features, dataset.test_labels, folder / "maps.png")


if __name__ == "__main__":
    tyro.cli(demo)
