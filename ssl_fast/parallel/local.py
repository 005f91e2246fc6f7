"""The rows that a loss's anchors meet in one process; `gathered.py` and `ring.py` have those of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas import sums
from ..formulas.statistics import ContrastiveStats
from ..operators import calls

if TYPE_CHECKING:
    from ..annotations import Ids, Scalar


class LocalBatch:
    """The rows that a loss's anchors meet: here those of one process. Tensors hold `each` rows for each of `count`."""

    def __init__(self, count: int):
        self.count = self.total = count
        self.first = 0  # the number of this rank's first row among all

    def images(self, device: torch.device) -> Tensor:
        """A number for each of the rank's rows (count,) that no other row of any rank has."""
        return torch.arange(self.first, self.first + self.count, device=device)

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' rows, the rank's own first: k = i is a row and its own partner."""
        return x

    def lse(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        temperature: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(lse, ranks) of `calls.similarity_lse` of the rank's a against all ranks' b; ids: of its own sums."""
        others: Tensor | None = b
        if b is a:  # rows with each other take half the products
            others, ids = None, (ids[0], None)
        lse, _, ranks = calls.similarity_lse(a, others, mask, temperature, ids, normalize, positive=positive)
        return lse, ranks

    def softplus(
        self, a: Tensor, b: Tensor, normalize: bool, temperature: Scalar, bias: Scalar, positive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(sums, ranks) of `calls.similarity_softplus` of the rank's a against all ranks' b."""
        return calls.similarity_softplus(a, b, normalize, temperature, bias, positive)

    def positive_loss(
        self, lse: Tensor, positive: Tensor, temperature: Scalar, reduction: str, **options: Any
    ) -> Tensor:
        """`calls.positive_loss` of the rank's sums."""
        return calls.positive_loss(lse, positive, temperature, reduction, **options)

    def sum(self, x: Tensor) -> Tensor:
        """Over the ranks, without gradient."""
        return x

    def reduce(self, loss_rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
        """As `sums.reduce`. counted: which rows the mean counts; the others are 0."""
        if reduction != "mean" or counted is None:
            return sums.reduce(loss_rows, reduction)
        return sums.total(loss_rows) / counted.sum().clamp_min(1)

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        """Over the ranks. pairs (2,): positive and negative pairs of the rank, where they are not as its sums."""
        return stats
