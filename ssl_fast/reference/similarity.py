"""What several formulas share, and the log-sum-exp of which the kernels make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..rows import ContrastiveStats, finite_rows, in_full_precision, in_range, reduce, stats_of, total, unit_rows

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@torch.no_grad()
def stats_from(
    loss_rows: Tensor, similarity: Tensor, best: Tensor, positive_mean: Tensor, negative: Tensor, temperature: Scalar
) -> ContrastiveStats:
    """Of a matrix (anchors, candidates). negative: a mask. best: similarity of each anchor's best positive."""
    scores, threshold = similarity / temperature, best[:, None] / temperature
    ranks = ((scores > threshold) & negative).sum(1)
    negative_mean = total(similarity.masked_fill(~negative, 0)) / negative.sum()
    return stats_of(loss_rows, ranks, positive_mean, negative_mean)


def symmetric_sum(first: Any, second: Any, factor: Scalar, reduction: str, return_stats: bool) -> Loss:
    """factor * (first + second) of two losses of the same images, and the mean of their statistics."""
    if not return_stats:
        return reduce(factor * (first + second), reduction)
    loss = reduce(factor * (first[0] + second[0]), reduction)
    return loss, ContrastiveStats(*((x + y) / 2 for x, y in zip(first[1], second[1], strict=True)))


def normalized_negatives(negatives: Any) -> Tensor:
    """A queue's rows as they are, a tensor's rows normalised."""
    if isinstance(negatives, Tensor):
        return unit_rows(negatives)
    # Cloned because MoCo enqueues between the loss and its backward, and autograd keeps this.
    return finite_rows(negatives.queue.clone())


def _allowed(a: Tensor, b: Tensor, exclude: Any, only: Any) -> Tensor:
    """The mask (N, M) of the pairs that count."""
    itself = torch.arange(a.shape[0], device=a.device)[:, None] == torch.arange(b.shape[0], device=a.device)
    if only is not None:
        same = only[0][:, None] == only[1]
        return same & ~itself if a is b else same
    if exclude is None:
        return torch.ones_like(itself)
    return ~itself if exclude == "self" else exclude[0][:, None] != exclude[1]


@in_full_precision
def similarity_lse(
    a: Tensor,
    b: Tensor,
    scale: Scalar = 10.0,
    exclude: Any = None,
    only: Any = None,
    normalize: bool = True,
    columns: bool = False,
) -> Any:
    """lse_i = log sum_k exp(scale <u_i, v_k>) over the allowed k; -Inf where there is none.

    Allowed are all k; with exclude="self" k != i; with exclude=(ids of a, ids of b) those whose id
    differs; with `only` those whose id is equal and, where b is a, k != i. columns: of each column too.
    """
    u = unit_rows(a) if normalize else finite_rows(a)
    v = u if b is a else (unit_rows(b) if normalize else finite_rows(b)).to(u.dtype)
    if isinstance(scale, Tensor):
        scale = 1 / in_range(1 / scale)
    logits = (scale * (u @ v.T)).masked_fill(~_allowed(a, b, exclude, only), float("-inf"))
    return (logits.logsumexp(1), logits.logsumexp(0)) if columns else logits.logsumexp(1)
