"""Accuracies of an encoder on clean and on transformed test images, and the table that shows them."""

from __future__ import annotations

import torch
from rich.table import Table
from torch import nn

from . import evaluate
from .augment import Augment
from .data import Dataset

MEASURES = {"knn": evaluate.knn_accuracy, "probe": evaluate.linear_probe_accuracy}
HEADINGS = {"knn": "kNN", "probe": "linear probe"}
TRANSFORM_SEED = 0  # every encoder sees the same transformed images


def accuracies(encoder: nn.Module, dataset: Dataset, measures: tuple[str, ...] = tuple(MEASURES)) -> dict[str, float]:
    """By measure and test images: {"knn_clean": 0.95, "knn_transformed": ..., "probe_clean": ..., ...}.

    encoder: (N, C, S, S) float to (N, D), on the device of the data set's tensors. The classifiers
    know the clean training images only.
    """
    augment = Augment(dataset)
    # Drawn on the CPU, where a seed gives the same images on every machine.
    generator = torch.Generator().manual_seed(TRANSFORM_SEED)
    transformed = augment.transform_test(dataset.test_images.cpu(), generator).to(dataset.test_images.device)
    test_images = {"clean": augment.plain(dataset.test_images), "transformed": transformed}
    train_features = evaluate.features(encoder, augment.plain(dataset.train_images))
    test_features = {kind: evaluate.features(encoder, images) for kind, images in test_images.items()}
    return {
        f"{measure}_{kind}": MEASURES[measure](train_features, dataset.train_labels, values, dataset.test_labels)
        for measure in measures
        for kind, values in test_features.items()
    }


def table(rows: dict[str, dict[str, float]], title: str) -> Table:
    """Rows by label, as `accuracies` returns them."""
    shown = Table(title=title)
    shown.add_column("features")
    columns = [(measure, kind) for measure in MEASURES for kind in ("clean", "transformed")]
    for measure, kind in columns:
        shown.add_column(f"{HEADINGS[measure]}\n{kind}", justify="right")
    for label, values in rows.items():
        shown.add_row(label, *(f"{values[f'{measure}_{kind}']:.3f}" for measure, kind in columns))
    return shown
