"""Pictures: curves of runs, pairs of views, maps of features, and a setting's effect over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from torch import Tensor

from .. import files

RESOLUTION = 110
# The panels of `curves`: the label of the axis, and by key of the log the line's style and name.
PANELS: dict[str, dict[str, tuple[str, str]]] = {
    "contrastive loss": {"loss": ("-", "")},
    "top-1 among the negatives": {"top1": ("-", "")},
    "kNN accuracy": {"knn_clean": ("--", "clean test images"), "knn_transformed": ("-", "transformed test images")},
    "linear probe accuracy": {"probe_clean": ("--", "clean"), "probe_transformed": ("-", "transformed")},
    "alignment (0 is best)": {"alignment": ("-", "")},
    "uniformity (low is best)": {"uniformity": ("-", "")},
}
IN_A_ROW = 3  # panels
FEW = 40  # up to so many points of a curve are each marked


def _save(figure: Figure, path: str | Path) -> None:
    # pyplot is not used, since its backend and its open figures belong to the caller.
    with files.replacing(path) as file:
        FigureCanvasAgg(figure).print_figure(file, format="png", dpi=RESOLUTION)


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Draws loss, top-1, accuracies, alignment and uniformity over the epochs, a panel for each that was measured.

    Args:
        histories: By label, the rows of a run's log. A key that is missing or None was not measured in that epoch.
        path: The PNG file to write.

    Raises:
        ValueError: where no run has anything to draw.
    """
    measured = {key for history in histories.values() for row in history for key in row if row[key] is not None}
    panels = {name: keys for name, keys in PANELS.items() if measured & keys.keys()}
    if not panels:
        known = ", ".join(key for keys in PANELS.values() for key in keys)
        raise ValueError(f"histories: expected rows with some of {known}, got none")
    columns = min(len(panels), IN_A_ROW)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows + 0.25 * len(histories) + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (name, keys) in zip(grid, panels.items(), strict=False):
        for colour, history in zip(_colours(len(histories)), histories.values(), strict=True):
            for key, (style, _) in keys.items():
                _curve(axes, history, key, color=colour, linestyle=style)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        shown = [(style, what) for key, (style, what) in keys.items() if key in measured and what]
        if shown:  # the panel's legend explains the styles, the figure's legend the colours
            axes.legend(handles=[axes.plot([], [], style, color="grey", label=what)[0] for style, what in shown])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    lines = [grid[0].plot([], [], color=colour, label=label)[0] for label, colour in _coloured(list(histories))]
    figure.legend(handles=lines, loc="outside lower center", ncols=1)
    _save(figure, path)


def _curve(axes: Axes, history: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="." if len(points) <= FEW else None, **style)


def _colours(count: int) -> list[Any]:
    if count <= 10:
        return [f"C{number}" for number in range(count)]
    # matplotlib repeats its colours after ten.
    return list(matplotlib.colormaps["turbo"]([number / (count - 1) for number in range(count)]))


def _coloured(labels: list[str]) -> list[tuple[str, Any]]:
    return list(zip(labels, _colours(len(labels)), strict=True))


def pairs(images: Tensor, view1: Tensor, view2: Tensor, path: str | Path) -> None:
    """Draws a column for each image: the image, its first view, its second view.

    Args:
        images: (N, C, H, W) float, C is 1 or 3.
        view1: (N, C, H, W) float.
        view2: (N, C, H, W) float.
        path: The PNG file to write.
    """
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
    """Draws t-SNE maps of features of the same images, coloured by class.

    Args:
        features: By title of the map, (N, D).
        labels: (N,) integers.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(5 * len(features), 5), layout="constrained")
    for axes, (title, values) in zip(
        figure.subplots(1, len(features), squeeze=False)[0], features.items(), strict=True
    ):
        # scikit-learn refuses a perplexity that is not below the number of points.
        tsne = TSNE(perplexity=min(30, len(values) / 4), init="pca", random_state=0)
        x, y = tsne.fit_transform(values.cpu().numpy()).T
        points = axes.scatter(x, y, c=labels.cpu().numpy(), cmap="tab10", s=8)
        axes.set(title=title, xticks=[], yticks=[])
    figure.legend(*points.legend_elements(), loc="outside right center", title="class")
    _save(figure, path)


def study(results: Mapping[str, Sequence[float]], path: str | Path, value: str, setting: str = "") -> None:
    """Draws a value for each of several settings: mean, sample standard deviation, and every seed as a point.

    If all labels are numbers (two or more), the means are joined by a line over them; its axis is logarithmic if the
    numbers are positive and span a factor of 20. Otherwise each label has a row, in the order given.

    Args:
        results: By label of the setting, a value for each seed.
        path: The PNG file to write.
        value: The name of the value, for its axis.
        setting: The name of the setting, for its axis.

    Raises:
        ValueError: where there is no result, or a label without values.
    """
    empty = [label for label, values in results.items() if not values]
    if not results or empty:
        raise ValueError(f"results: expected values for every label, got none for {empty[0] if empty else 'any'}")
    positions = _numbers(list(results))
    if len(positions) > 1:
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        _line(axes, sorted(zip(positions, results.values(), strict=True), key=lambda pair: pair[0]))
        axes.set(xlabel=setting, ylabel=value)
    else:
        figure = Figure(figsize=(7, 1.2 + 0.4 * len(results)), layout="constrained")
        axes = figure.subplots()
        _rows(axes, results)
        axes.set(xlabel=value, ylabel=setting)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _numbers(labels: list[str]) -> list[float]:
    """Returns the labels as numbers, or nothing if one of them is no number."""
    try:
        return [float(label) for label in labels]
    except ValueError:
        return []


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _line(axes: Axes, points: list[tuple[float, Sequence[float]]]) -> None:
    x = [position for position, _ in points]
    means, spreads = zip(*(_mean_and_spread(values) for _, values in points), strict=True)
    axes.errorbar(x, means, spreads, marker="o", capsize=3)
    for position, values in points:
        axes.plot([position] * len(values), values, ".", color="grey", alpha=0.6)
    if x[0] > 0 and x[-1] >= 20 * x[0]:
        axes.set_xscale("log")


def _rows(axes: Axes, results: Mapping[str, Sequence[float]]) -> None:
    for row, values in enumerate(results.values()):
        mean, spread = _mean_and_spread(values)
        axes.errorbar(mean, row, xerr=spread, marker="o", capsize=3, color="C0")
        axes.plot(values, [row] * len(values), ".", color="grey", alpha=0.6)
    axes.set_yticks(range(len(results)), list(results))
    axes.set_ylim(len(results) - 0.5, -0.5)  # the first on top, as in a table
