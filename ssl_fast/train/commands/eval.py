"""`ssl-fast eval`: measures the features of a checkpoint."""

# No `from __future__ import annotations`: tyro reads the annotations.

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from .. import files
from ..data import datasets
from ..data.batches import plain_batches
from ..engine import checkpoint
from ..engine.export_formats import encoder_of
from ..evaluation import plots, report
from ..evaluation.features import encode_batches
from ..evaluation.linear_probe import probe_images
from .exit_code import exit_code

MAPPED = 2000  # the most images on a map, since t-SNE is slow


def main(arguments: list[str]) -> int:
    """Runs `ssl-fast eval` with these arguments and returns its exit code."""
    return exit_code("eval", lambda: tyro.cli(evaluation, prog="ssl-fast eval", args=arguments))


def evaluation(
    path: Annotated[Positional[Path], arg(metavar="CHECKPOINT")],
    data_spec: Annotated[str | None, arg(name="data", metavar="DATA")] = None,
    k: int | None = None,
    low_label: bool = False,
    linear_epochs: int = 0,
    output: Path | None = None,
    map: Path | None = None,
    workers: int = 4,
) -> None:
    """Measure a checkpoint's features, those after pooling: kNN, logistic regression, alignment and uniformity.

    Args:
        path: A checkpoint (last.pt, best.pt) that ssl-fast train wrote.
        data_spec: Other data than it was trained on, e.g. fashion-mnist:FOLDER.
        k: Neighbours that vote in kNN; 200 unless given, fewer where classes are small.
        low_label: Also logistic regression on 1 % and 10 % of the labels.
        linear_epochs: Also the method's published linear protocol, for so many epochs (the papers have 100 or 90).
        output: Write the figures to this JSON file.
        map: Draw a t-SNE map of the test features to this PNG file.
        workers: Processes that load the images of a folder.
    """
    contents = checkpoint.load(path)
    dataset = datasets.load(data_spec or contents["data"])
    if dataset.channels != contents["channels"]:
        raise ValueError(f"data: expected {contents['channels']} channels as trained, got {dataset.channels}")
    if k is not None and k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    recipe, name = contents["recipe"], contents["recipe_name"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder_of(contents).to(device)
    measures = ("knn", "probe", *(report.FRACTIONS if low_label else ()), "alignment", "uniformity")
    seen: dict[str, Any] = {"image_size": recipe.image_size, "workers": workers}
    figures = report.accuracies(
        encoder, dataset, recipe.normalize_images, device, measures, k=k, views=recipe.views, **seen
    )
    if linear_epochs:
        protocol = dataclasses.replace(recipe.linear_protocol, epochs=linear_epochs)
        figures |= probe_images(encoder, dataset, protocol, recipe.normalize_images, device, **seen)
    table = Table("measure", name, title=f"{name} on {dataset.name}, epoch {contents['epoch']}")
    for measure, value in figures.items():
        table.add_row(measure.replace("_", " "), f"{value:.3f}")
    Console().print(table)
    if output is not None:
        found = {"checkpoint": str(path), "recipe": name, "data": dataset.name, "epoch": contents["epoch"], **figures}
        files.write_text(output, json.dumps(found, indent=1) + "\n")
    if map is not None:
        plain = plain_batches(dataset, "test", recipe.normalize_images, device, **seen)
        features, labels = encode_batches(encoder, plain)
        plots.maps({name: features[:MAPPED]}, labels[:MAPPED], map)
