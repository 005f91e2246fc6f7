"""How well a batch separates positives from negatives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .scalars import Scalar, sign_of
from .sums import total


class ContrastiveStats(NamedTuple):
    """How well the batch separates positives from negatives; four 0-D tensors without gradient.

    top1, top5: share of anchors whose positive is the most similar candidate, or among the five most similar,
    where similarity counts with the sign of the temperature and ties go to the positive.
    positive_similarity, negative_similarity: mean cosine similarity of anchor-positive pairs and
    of anchor-negative pairs (NaN where there is no negative).
    """

    top1: Tensor
    top5: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def stats_of(loss_rows: Tensor, above: Tensor, positive_mean: Tensor, negative_mean: Tensor) -> ContrastiveStats:
    """above: of each anchor, how many candidates are more similar than its positive."""
    # A NaN row has no rank: NaN - NaN carries it into the shares.
    nan_or_zero = (loss_rows - loss_rows).detach()
    return ContrastiveStats(
        ((above < 1) + nan_or_zero).mean(), ((above < 5) + nan_or_zero).mean(), positive_mean, negative_mean
    )


@torch.no_grad()
def stats_from(
    loss_rows: Tensor, similarity: Tensor, best: Tensor, positive_mean: Tensor, negative: Tensor, signed: Scalar
) -> ContrastiveStats:
    """Of a matrix (anchors, candidates). negative: a mask. best: similarity of each anchor's best positive.

    signed: the temperature or the scale, by whose sign similarities are ranked.
    """
    sign = sign_of(signed, similarity.dtype)
    above = ((sign * similarity > sign * best[:, None]) & negative).sum(1)
    negative_mean = total(similarity.masked_fill(~negative, 0)) / negative.sum()
    return stats_of(loss_rows, above, positive_mean, negative_mean)
