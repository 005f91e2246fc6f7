"""The rows that a loss's anchors meet in one process; `gathered.py` and `ring.py` have those of several.

All three are one interface: a loss is written once, and `batch_of` chooses by the argument `group`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import sums
from ..formulas.statistics import ContrastiveStats
from ..operators import calls


class LocalBatch:
    """The rows that a loss's anchors meet: here those of one process.

    Attributes:
        alone: whether there are no other ranks' rows.
        count, total: images of this rank, and of all ranks.
        counts: images of each rank.
        first: the number of this rank's first image among all.
    """

    alone = True

    def __init__(self, count: int):
        self.count = self.total = count
        self.counts = [count]
        self.first = 0

    def refuse_ring(self, loss: str) -> None:
        """Raises ValueError where rows are passed round: `loss` needs all of them at once."""

    def images(self, device: torch.device) -> Tensor:
        """(count,) a number for each of the rank's images that no other image of any rank has."""
        return torch.arange(self.first, self.first + self.count, device=device)

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows, the rank's own first: so k = i is a row and itself, or its own partner."""
        return x

    def in_order(self, x: Tensor) -> Tensor:
        """All ranks' rows in the order of the ranks."""
        return x

    def own_rows(self, x: Tensor, image_first: bool) -> Tensor:
        """The rank's part of x, which holds rows of all images: a view below the other, or an image's together."""
        return x

    # In one process these are the calls of the operators. With several, a, its ids and its positives are this rank's;
    # b and its ids are given as this rank's part, and stand for those of all ranks.
    lse = staticmethod(calls.similarity_lse)
    lse_of_both = staticmethod(calls.similarity_lse_of_both)
    softplus = staticmethod(calls.similarity_softplus)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, without gradient."""
        return x

    def reduce(
        self, loss_rows: Tensor, reduction: str, weights: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        """`formulas.sums.reduce` of the rank's rows; a mean is the rank's share of that over all ranks."""
        return sums.reduce(loss_rows, reduction, weights, counted)

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        """The mean of the ranks' statistics, each weighted by its number of images.

        pairs: (2,) how many positive and negative pairs this rank has, which then weigh its two mean similarities.
        """
        return stats
