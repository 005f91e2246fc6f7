"""What an encoder's features are worth on clean and on transformed test images, as numbers, table and file."""

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
SEED = 0  # every encoder sees the same transformed images, pairs and shares of the labels
BATCH = 512
PAIR_BATCHES = 20  # of alignment, at most
RESULTS = "results.json"

Features = tuple[Tensor, Tensor]  # with their labels


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
    """By measure and test images: {"knn_clean": 0.95, "knn_transformed": ..., "probe_clean": ..., ...}.

    encoder: (N, C, S, S) float to (N, D), on `device`; it keeps its modes, weights and statistics. Test images are
    transformed of sets in memory only. The classifiers know the clean training images only, those with a label.
    measures: of MEASURES; knn and probe on each kind of test images, "probe_1%" and "probe_10%" (a share of the
    training labels) and "uniformity" on the clean ones, "alignment" on two views of up to some ten thousand.
    normalize, image_size, views: as the encoder was trained, Recipe.normalize_images, image_size and views; alignment
    is that of the first and the last view. k: of kNN; None takes `metrics.neighbours`.
    workers: processes that load a folder's images.
    Raises ValueError for another measure, and what the measures raise.
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
            # By the numbers of no recipe: the same images for all.
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
    # Drawn on the CPU, where a seed gives the same images on every machine; in parts, which bound the memory.
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
    # The test images in the place of the training images, of which views are drawn.
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
    """Rows by label, as `accuracies` returns them, with a column for each key that a row has."""
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
    """Writes the rows, by label as `accuracies` returns them, to results.json in `folder`, whole or not at all."""
    path = Path(folder) / RESULTS
    files.write_text(path, json.dumps(rows, indent=1) + "\n")
    return path
