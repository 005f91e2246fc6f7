"""Pictures of a run: curves, augmented pairs, and maps of the embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from . import files

RESOLUTION = 110


def _save(figure: Figure, path: str | Path) -> None:
    # Figures of their own and not pyplot's: nothing of the caller's matplotlib changes.
    with files.replacing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=RESOLUTION)


def curves(histories: dict[str, list[dict[str, Any]]], path: str | Path) -> None:
    """Loss and kNN accuracy over the epochs. histories: by label, the rows of each run's log."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for number, (label, history) in enumerate(histories.items()):
        colour = f"C{number}"
        loss_axes.plot([row["epoch"] for row in history], [row["loss"] for row in history], colour, label=label)
        measured = [row for row in history if row["knn_clean"] is not None]
        epochs = [row["epoch"] for row in measured]
        for key, style in (("clean", "--"), ("transformed", "-")):
            values = [row[f"knn_{key}"] for row in measured]
            accuracy_axes.plot(epochs, values, colour + style, marker=".", label=f"{label}, {key} test images")
    loss_axes.set(xlabel="epoch", ylabel="contrastive loss")
    accuracy_axes.set(xlabel="epoch", ylabel="kNN accuracy")
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def pairs(images: Tensor, view1: Tensor, view2: Tensor, path: str | Path) -> None:
    """A column an image: the image, its view 1, its view 2. Each: float (N, C, H, W), C 1 or 3."""
    figure = Figure(figsize=(len(images), 3.4), layout="constrained")
    grid = figure.subplots(3, len(images), squeeze=False)
    for row, (title, shown) in zip(grid, (("image", images), ("view 1", view1), ("view 2", view2)), strict=True):
        low, high = shown.min(), shown.max()
        row[0].set_ylabel(title)
        for axes, image in zip(row, (shown - low) / (high - low).clamp(min=1e-6), strict=True):
            axes.imshow(image.permute(1, 2, 0).cpu().squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    _save(figure, path)


def maps(features: dict[str, Tensor], labels: Tensor, path: str | Path) -> None:
    """A t-SNE map a panel. features: by title, (N, D) of the same N images; labels: (N,) integers."""
    figure = Figure(figsize=(5 * len(features), 5), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(features), squeeze=False)[0], features.items(), strict=True
    ):
        # t-SNE needs a perplexity below the number of points.
        tsne = TSNE(perplexity=min(30, len(values) / 4), init="pca", random_state=0)
        x, y = tsne.fit_transform(values.cpu().numpy()).T
        points = axes.scatter(x, y, c=labels.cpu().numpy(), cmap="tab10", s=8)
        axes.set(title=title, xticks=[], yticks=[])
    figure.legend(*points.legend_elements(), loc="outside right center", title="class")
    _save(figure, path)
