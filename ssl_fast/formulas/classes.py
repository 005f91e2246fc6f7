"""Labels of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def views_of(features: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """(N, D) with labels (N,); (B, V, D) becomes (B V, D), all views of a row with its label or, without, its index."""
    if features.dim() == 2:
        return features, labels
    count, views, dim = features.shape
    if labels is None:
        labels = torch.arange(count, device=features.device)
    return features.reshape(count * views, dim), labels.repeat_interleave(views)


def dense(labels: Tensor) -> Tensor:
    """Labels (N,) -> classes from 0 to N - 1, equal where they were; without waiting for a device."""
    ordered, order = labels.sort(stable=True)
    new = torch.cat([ordered.new_zeros(1, dtype=torch.int64), (ordered[1:] != ordered[:-1]).long()])
    return torch.empty_like(order).scatter_(0, order, new.cumsum(0))


def class_sums(x: Tensor, classes: Tensor, count: int) -> Tensor:
    """(count, ...) the sums of the rows of x (N, ...) of each class from 0 to count - 1, in a fixed order."""
    sums = x.new_zeros(count, *x.shape[1:])
    # On a GPU index_add adds atomically, in any order; index_put sorts first.
    return sums.index_put((classes,), x, accumulate=True) if x.is_cuda else sums.index_add(0, classes, x)


def same_class_sums(x: Tensor, classes: Tensor) -> Tensor:
    """For each row of x (N, ...) the sum of all rows of its class, from 0 to N - 1."""
    return class_sums(x, classes, x.shape[0]).index_select(0, classes)


def same_class_similarity(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each row (N, D) the sum of its dots with the other rows of its label, and how many they are, in O(N D)."""
    classes = dense(labels)
    others = same_class_sums(torch.ones_like(classes), classes) - 1
    return (rows * (same_class_sums(rows, classes) - rows)).sum(1), others
