"""How good frozen features are: weighted k nearest neighbours, a linear probe, alignment and uniformity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...formulas.rows import unit_rows

# Of Wu et al. 2018 and zhirongw/lemniscate.pytorch.
K, TEMPERATURE = 200, 0.07
SMALL_K = 20  # where a class has fewer rows than K; best in DINO (Caron et al. 2021)
CHUNK_ELEMENTS = 1 << 25  # of a similarity matrix: 128 MB of float32


def neighbours(labels: Tensor) -> int:
    """The k for training labels (N,): the published 200 where a class has so many rows on average, else up to 20."""
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
    """Share of test rows whose k nearest training rows vote for their label (Wu et al. 2018, section 3.4).

    A neighbour of cosine similarity c votes with weight exp(c / temperature). Features (N, D) float, labels (N,)
    integers from 0. k: no more than a class has rows, or the votes of other classes decide; `neighbours` chooses one.
    Memory beside the features: CHUNK_ELEMENTS similarities.
    Raises ValueError for labels that do not fit the features, features that are not finite, k and temperature not
    above 0.
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
        # The nearest one's weight is 1: the shares of the votes stay, and no temperature overflows.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), classes).scatter_add_(1, train_labels[nearest], weights)
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test_labels)


def logistic_regression_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Share of test rows that a logistic regression on the standardised training features gets right.

    Features (N, D) float, labels (N,) integers from 0, of two classes at least. For sets of some ten thousand rows;
    `linear_probe.py` has the protocols of the papers.
    Raises ValueError for labels that do not fit the features and features that are not finite.
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
    """Indices, rising, of a random share of the labels (N,), the same share of each class and at least one of each.

    The 1 % and 10 % of semi-supervised evaluation (Chen et al. 2020, section 6), class-balanced as there. The label -1
    is no class. The same seed draws the same rows on every device.
    Raises ValueError for a fraction that is not above 0 and up to 1.
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
    """Mean squared distance of positive pairs on the unit sphere, 0 best (Wang & Isola 2020, section 4.1, alpha 2).

    features1, features2: (N, D) float, row i of both of the same image.
    Raises ValueError for other shapes and for no rows.
    """
    if features1.dim() != 2 or features1.shape != features2.shape or not len(features1):
        shapes = f"{tuple(features1.shape)} and {tuple(features2.shape)}"
        raise ValueError(f"features1, features2: expected two of the same shape (N, D), N from 1, got {shapes}")
    return float((unit_rows(features1) - unit_rows(features2)).square().sum(1).mean())


@torch.no_grad()
def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 |u - v|^2) over all pairs of unit rows (Wang & Isola 2020, section 4.1, t 2).

    features: (N, D) float, N from 2. 0 where all are one point, about -4 where they spread evenly over the sphere of
    many dimensions. Memory beside the features: CHUNK_ELEMENTS similarities.
    Raises ValueError for another shape.
    """
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features: expected (N, D), N from 2, got {tuple(features.shape)}")
    u, total = unit_rows(features), 0.0
    chunk = max(1, CHUNK_ELEMENTS // len(u))
    for start in range(0, len(u), chunk):
        # Each pair once: only the rows after its own. |u - v|^2 = 2 - 2 u.v
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
