"""Measures of fixed features: nearest neighbours, logistic regression, alignment and uniformity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...formulas.rows import unit_rows

K, TEMPERATURE = 200, 0.07  # Wu et al. 2018, and zhirongw/lemniscate.pytorch
SMALL_K = 20  # where a class has fewer rows than K; Caron et al. 2021 (DINO) find 20 best
CHUNK_ELEMENTS = 1 << 25  # similarities that are in memory at a time: 128 MB of float32


def neighbours(labels: Tensor) -> int:
    """Chooses the k of `knn_accuracy`: the published 200 if a class has as many rows on average, otherwise up to 20.

    Args:
        labels: (N,) integers, of the training rows.
    """
    per_class = max(1, len(labels) // max(1, len(labels.unique())))
    return K if per_class >= K else min(SMALL_K, per_class)


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> float:
    """Measures the share of test rows whose nearest training rows vote for their label (Wu et al. 2018, section 3.4).

    A neighbour of cosine similarity c votes for its label with the weight exp(c / temperature).

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integers from 0.
        test_features: (M, D) float.
        test_labels: (M,) integers from 0.
        k: Neighbours that vote. With more than a class has rows, other classes decide; `neighbours` chooses a number.
        temperature: Of the votes.

    Returns:
        A share from 0 to 1. Beside the features, CHUNK_ELEMENTS similarities are in memory.

    Raises:
        ValueError: for labels that do not fit the features, features that are not finite, and a k or a temperature that
            is not above 0.
    """
    _check("train", train_features, train_labels)
    _check("test", test_features, test_labels)
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature: expected a finite number above 0, got {temperature}")
    train, classes = unit_rows(train_features), int(train_labels.max()) + 1
    chunk = max(1, CHUNK_ELEMENTS // len(train))
    right = 0
    for rows, labels in zip(unit_rows(test_features).split(chunk), test_labels.split(chunk), strict=True):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)))
        # Dividing by the nearest row's weight keeps the shares of the votes and cannot overflow at any temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), classes).scatter_add_(1, train_labels[nearest], weights)
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test_labels)


def logistic_regression_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Measures the share of test rows that a logistic regression on the training features gets right.

    The features are standardised by the training rows, and scikit-learn fits the regression to convergence, which suits
    up to some ten thousand rows. The papers' own protocols are in linear_probe.py.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integers from 0, of at least two classes.
        test_features: (M, D) float.
        test_labels: (M,) integers from 0.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: for labels that do not fit the features, and features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check("train", train_features, train_labels)
    _check("test", test_features, test_labels)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_features.cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test_features.cpu().numpy(), test_labels.cpu().numpy()))


def label_fraction(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Draws a share of the labelled rows, the same share of each class and at least one row of each.

    Such are the 1 % and 10 % of semi-supervised evaluation (Chen et al. 2020, section 6).

    Args:
        labels: (N,) integers; rows with the label -1 are never drawn.
        fraction: The share, above 0 and up to 1.
        seed: The same seed draws the same rows on every device.

    Returns:
        The numbers of the drawn rows, rising, int64, on the labels' device.

    Raises:
        ValueError: for another fraction.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number above 0 and up to 1, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    on_cpu, drawn = labels.cpu(), [torch.empty(0, dtype=torch.int64)]
    for label in on_cpu[on_cpu >= 0].unique():
        rows = (on_cpu == label).nonzero().flatten()
        count = max(1, round(fraction * len(rows)))
        drawn.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    return torch.cat(drawn).sort().values.to(labels.device)


@torch.no_grad()
def alignment(features1: Tensor, features2: Tensor) -> float:
    """Measures the mean squared distance of positive pairs of unit rows (Wang & Isola 2020, section 4.1, alpha 2).

    Args:
        features1: (N, D) float, one view of each image.
        features2: (N, D) float, another view of the same images.

    Returns:
        A number from 0, which is best, to 4.

    Raises:
        ValueError: for other shapes and for no rows.
    """
    if features1.dim() != 2 or features1.shape != features2.shape or not len(features1):
        shapes = f"{tuple(features1.shape)} and {tuple(features2.shape)}"
        raise ValueError(f"features1, features2: expected two of the same shape (N, D), N from 1, got {shapes}")
    return float((unit_rows(features1) - unit_rows(features2)).square().sum(1).mean())


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """Measures log mean exp(-2 |u - v|^2) over all pairs of unit rows (Wang & Isola 2020, section 4.1, t 2).

    Args:
        features: (N, D) float, N from 2.

    Returns:
        0 where all rows are the same, about -4 where they are spread evenly over a sphere of many dimensions. Beside
        the features, CHUNK_ELEMENTS similarities are in memory.

    Raises:
        ValueError: for another shape.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features: expected (N, D), N from 2, got {tuple(features.shape)}")
    u, total = unit_rows(features), 0.0
    chunk = max(1, CHUNK_ELEMENTS // len(u))
    for start in range(0, len(u), chunk):
        # A row meets only the rows after it, so that each pair counts once. |u - v|^2 = 2 - 2 u.v
        similarity = u[start : start + chunk] @ u[start:].T
        total += float((4 * (similarity - 1)).exp().triu(diagonal=1).sum())
    return math.log(total / (len(u) * (len(u) - 1) / 2))


def _check(part: str, rows: Tensor, labels: Tensor) -> None:
    if rows.dim() != 2 or labels.shape != rows.shape[:1] or not len(labels):
        raise ValueError(
            f"{part}_features, {part}_labels: expected (N, D) and (N,), N from 1, "
            f"got {tuple(rows.shape)} and {tuple(labels.shape)}"
        )
    if int(labels.min()) < 0:
        raise ValueError(f"{part}_labels: expected labels from 0, got {int(labels.min())}")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{part}_features: expected finite numbers, got NaN or Inf")
