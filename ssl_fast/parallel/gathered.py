"""The rows of all ranks of a process group, gathered on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ..formulas import sums
from ..formulas.statistics import ContrastiveStats
from ..operators import calls
from ..operators.codes import NOT_SELF
from .collectives import counts_of, gather, total_over
from .local import LocalBatch

if TYPE_CHECKING:
    from ..annotations import Ids, Scalar


class GatheredBatch(LocalBatch):
    """The rows of all ranks of a process group, gathered. x (n, ...): this rank's rows of one argument of the loss."""

    alone = False

    def __init__(self, x: Tensor, group: dist.ProcessGroup):
        super().__init__(x.shape[0])
        self.group, self.world = group, dist.get_world_size(group)
        self.counts = counts_of(x.shape[0], group, x.device)
        self.total, self.first = sum(self.counts), sum(self.counts[: dist.get_rank(group)])

    def gather(self, x: Tensor) -> Tensor:
        return torch.roll(self.in_order(x), -self.first * self._each(x), 0)

    def in_order(self, x: Tensor) -> Tensor:
        each = self._each(x)
        return gather(x, self.group, [count * each for count in self.counts])

    def own_rows(self, x: Tensor, image_first: bool) -> Tensor:
        own = slice(self.first, self.first + self.count)
        return (x.view(self.total, -1)[own] if image_first else x.view(-1, self.total)[:, own]).flatten()

    def _each(self, x: Tensor) -> int:
        """How many rows of x each of the rank's images has."""
        return x.shape[0] // self.count

    def lse(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        scale: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        ids = (ids[0], None if ids[1] is None else self.gather(ids[1]))
        return super().lse(a, self.gather(b), mask, scale, ids, normalize, positive)

    def lse_of_both(
        self,
        a: Tensor,
        b: Tensor,
        mask: int,
        scale: Scalar,
        ids: Ids = (None, None),
        normalize: tuple[bool, bool] = (True, True),
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, of_rows = self.lse(a, b, mask, scale, ids, normalize, positive)
        columns, of_columns = self.lse(b, a, mask, scale, ids[::-1], normalize[::-1], positive)
        return rows, columns, torch.cat([of_rows, of_columns])

    def softplus(
        self, a: Tensor, b: Tensor, normalize: bool, scale: Scalar, bias: Scalar, positive: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        row_sums, above = super().softplus(a, b, normalize, scale, bias)
        for other in self.gather(b).split(self.count)[1:]:
            # The operator leaves out k = i, which with another rank's rows is a pair like any other.
            pairs = calls.pair_similarity(a, other, normalize, normalize) * scale + bias
            row_sums = row_sums + super().softplus(a, other, normalize, scale, bias)[0] + sums.softplus(pairs)
        if positive is not None:
            with torch.no_grad():
                *_, above = self.lse_of_both(a, b, NOT_SELF, scale, (None, None), (normalize, normalize), positive)
        return row_sums, above

    def sum(self, x: Tensor) -> Tensor:
        return total_over(x, self.group)

    def reduce(
        self, loss_rows: Tensor, reduction: str, weights: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        if reduction != "mean":
            return sums.reduce(loss_rows, reduction, weights)
        number: int | Tensor = self.total * self._each(loss_rows)
        if weights is not None or counted is not None:
            number = self._number(loss_rows, weights, counted)
        return sums.reduce(loss_rows, "sum", weights) * self.world / number

    def _number(self, loss_rows: Tensor, weights: Tensor | None, counted: Tensor | None) -> Tensor:
        """What `formulas.sums.mean_divisor` is of all ranks' rows."""
        own = torch.ones_like(loss_rows) if weights is None else weights.to(loss_rows.dtype)
        rows = torch.ones_like(loss_rows, dtype=torch.bool) if counted is None else counted
        number, found = self.sum(torch.stack([sums.total(own * rows), rows.sum().to(own.dtype)]).double())
        return torch.where(found > 0, number, 1).to(loss_rows.dtype)

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        values = torch.stack(stats).double()
        shares = torch.full_like(values, self.count)
        if pairs is not None:
            shares[2:] = pairs
        # A rank without any such pair has a mean of NaN, and no part in the mean of all.
        of_all = self.sum(torch.stack([torch.where(shares > 0, values * shares, 0), shares]))
        return ContrastiveStats(*(of_all[0] / of_all[1]).to(stats[0].dtype))
