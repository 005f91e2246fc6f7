"""An encoder's accuracies on clean and on transformed test images: measured, as a table, and as a file."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn

from .. import files
from ..data.batch_augmentation import Augment
from ..data.batches import Batches, plain_batches
from ..data.datasets import Dataset, FolderDataset
from ..recipes import TwoViewRecipe, View
from . import metrics
from .features import encode, encode_batches

CLASSIFIERS = ("knn", "probe")
FRACTIONS = {"probe_1%": 0.01, "probe_10%": 0.1}
MEASURES = (*CLASSIFIERS, *FRACTIONS, "alignment", "uniformity")
HEADINGS = {"knn": "kNN", "probe": "linear probe"}
SEED = 0  # one for all encoders: they are tested on the same transformed images, pairs and shares of the labels
BATCH = 512
PAIR_BATCHES = 20  # the most batches of pairs that alignment is measured on
RESULTS = "results.json"

Features = tuple[Tensor, Tensor]  # (N, D) and their labels (N,)


def accuracies(
    encoder: nn.Module,
    dataset: Dataset | FolderDataset,
    normalize: bool,
    device: torch.device | str,
    measures: tuple[str, ...] = ("knn", "probe"),
    *,
    image_size: int = 0,
    views: tuple[View, ...] = (View(),),
    k: int | None = None,
    workers: int = 0,
) -> dict[str, float]:
    """Measures an encoder's features.

    "knn" and "probe" (logistic regression) classify the clean test images and, for data sets in memory, test images
    that are shifted, zoomed and rotated. The classifiers are given the labelled training images as they are.

    Args:
        encoder: (n, C, S, S) to (n, D), on `device`. Its modes, weights and statistics stay as they are.
        dataset: Of data.load.
        normalize: Recipe.normalize_images, as the encoder was trained.
        device: Where to compute.
        measures: Some of MEASURES: "knn"; "probe"; "probe_1%" and "probe_10%", the probe with a share of the training
            labels; "alignment" of two views of the test images; "uniformity" of the clean test images.
        image_size: Recipe.image_size, as the encoder was trained.
        views: Recipe.views; alignment is measured between the first and the last of them.
        k: Neighbours of kNN; None takes `metrics.neighbours`.
        workers: Processes that read a folder's images.

    Returns:
        The values by measure and test images: {"knn_clean": 0.95, "knn_transformed": 0.9, "alignment": 0.3, ...}.

    Raises:
        ValueError: for another measure, and for what the measures cannot take.
    """
    unknown = [measure for measure in measures if measure not in MEASURES]
    if unknown:
        raise ValueError(f"measures: expected some of {', '.join(MEASURES)}, got {unknown[0]!r}")

    def plain(part: Literal["train", "test"]) -> Features:
        found = plain_batches(dataset, part, normalize, device, BATCH, workers, image_size)
        return encode_batches(encoder, found)

    results: dict[str, float] = {}
    classified = [measure for measure in measures if measure in CLASSIFIERS or measure in FRACTIONS]
    clean = plain("test") if classified or "uniformity" in measures else None
    if clean and classified:
        tests = {"clean": clean}
        if isinstance(dataset, Dataset) and set(CLASSIFIERS) & set(measures):
            # The numbers of View's affine are taken, not the recipe's: all encoders are tested on the same images.
            found = _transformed(dataset, Augment(dataset, View(), normalize, image_size), device)
            tests["transformed"] = encode_batches(encoder, found)
        results = _classified(classified, plain("train"), tests, k)
    if "alignment" in measures:
        recipe = TwoViewRecipe(
            seed=SEED, image_size=image_size, normalize_images=normalize, view1=views[0], view2=views[-1]
        )
        results["alignment"] = _alignment(encoder, dataset, recipe, device, workers)
    if clean and "uniformity" in measures:
        results["uniformity"] = metrics.uniformity(clean[0])
    return results


def _classified(measures: list[str], train: Features, tests: dict[str, Features], k: int | None) -> dict[str, float]:
    results: dict[str, float] = {}
    for measure in measures:
        if measure in FRACTIONS:
            rows = metrics.label_fraction(train[1], FRACTIONS[measure], SEED)
            few = train[0][rows], train[1][rows]
            results[measure] = metrics.logistic_regression_accuracy(*few, *tests["clean"])
            continue
        for kind, test in tests.items():
            if measure == "knn":
                value = metrics.knn_accuracy(*train, *test, k=metrics.neighbours(train[1]) if k is None else k)
            else:
                value = metrics.logistic_regression_accuracy(*train, *test)
            results[f"{measure}_{kind}"] = value
    return results


def _transformed(dataset: Dataset, augment: Augment, device: torch.device | str) -> Iterator[Features]:
    # The images are drawn on the CPU, where a seed gives the same ones on every machine, in parts that bound the
    # memory.
    generator = torch.Generator().manual_seed(SEED)
    parts = zip(dataset.test_images.cpu().split(BATCH), dataset.test_labels.split(BATCH), strict=True)
    for images, labels in parts:
        yield augment.transform_test(images, generator).to(device), labels.to(device)


def _alignment(
    encoder: nn.Module,
    dataset: Dataset | FolderDataset,
    recipe: TwoViewRecipe,
    device: torch.device | str,
    workers: int,
) -> float:
    # Batches draws views of training images, so the test images are put in their place.
    if isinstance(dataset, Dataset):
        dataset = dataclasses.replace(dataset, train_images=dataset.test_images, train_labels=dataset.test_labels)
    else:
        dataset = dataclasses.replace(dataset, train=dataset.test)
    recipe = dataclasses.replace(recipe, batch_size=min(BATCH, dataset.train_count))
    drawn = Batches(dataset, recipe, device, workers=workers).epoch(0)
    pairs = [views for views, _ in itertools.islice(drawn, PAIR_BATCHES)]
    sides = [encode(encoder, torch.cat(side), BATCH) for side in zip(*pairs, strict=True)]
    return metrics.alignment(*sides)


def table(rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """Makes a table with a row for each label and a column for each key of its values, as `accuracies` returns them."""
    shown = Table(title=title)
    shown.add_column("features")
    columns = list(dict.fromkeys(key for values in rows.values() for key in values))
    for key in columns:
        measure, _, kind = key.partition("_")
        shown.add_column(f"{HEADINGS.get(measure, measure)}\n{kind}".strip(), justify="right")
    for label, values in rows.items():
        shown.add_row(label, *("–" if values.get(key) is None else f"{values[key]:.3f}" for key in columns))
    return shown


def save_results(folder: str | Path, rows: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the values by label to results.json in `folder`, and returns its path."""
    path = Path(folder) / RESULTS
    files.write_text(path, json.dumps(rows, indent=1) + "\n")
    return path
