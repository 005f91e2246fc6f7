"""The rows of all ranks of a process group, gathered on each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..formulas import sums as sums_of
from ..formulas.statistics import ContrastiveStats
from ..operators import calls
from ..operators.codes import NOT_SELF
from .collectives import counts_of, gather, total_over
from .local import LocalBatch

if TYPE_CHECKING:
    from ..annotations import Ids, Loss, Scalar


class GatheredBatch(LocalBatch):
    """The rows of all ranks of a process group, gathered."""

    def __init__(self, x: Tensor, group: dist.ProcessGroup):
        self.group, self.world = group, dist.get_world_size(group)
        self.counts = counts_of(x.shape[0], group, x.device)
        self.rank = dist.get_rank(group)
        self.count, self.total = x.shape[0], sum(self.counts)
        self.first = sum(self.counts[: self.rank])

    def gather(self, x: Tensor) -> Tensor:
        return torch.roll(self.in_order(x), -self.first * self._each(x), 0)

    def in_order(self, x: Tensor) -> Tensor:
        """All ranks' rows in the order of the ranks."""
        each = self._each(x)
        return gather(x, self.group, [count * each for count in self.counts])

    def _each(self, x: Tensor) -> int:
        return x.shape[0] // self.count

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
        ids = (ids[0], None if ids[1] is None else self.gather(ids[1]))
        return super().lse(a, self.gather(b), mask, temperature, ids, normalize, positive)

    def softplus(
        self,
        a: Tensor,
        b: Tensor,
        normalize: bool,
        temperature: Scalar,
        bias: Scalar,
        positive: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        sums, ranks = super().softplus(a, b, normalize, temperature, bias)
        for other in self.gather(b).split(self.count)[1:]:
            # The operator leaves out k = i, which here is a pair like any other.
            pairs = calls.pair_similarity(a, other, normalize, normalize) / temperature + bias
            sums = sums + super().softplus(a, other, normalize, temperature, bias)[0] + sums_of.softplus(pairs)
        if positive is not None:
            options: dict[str, Any] = {"normalize": (normalize, normalize), "positive": positive}
            with torch.no_grad():
                both = (self.lse(*x, NOT_SELF, temperature, **options) for x in ((a, b), (b, a)))
                ranks = torch.cat([of_side for _, of_side in both])
        return sums, ranks

    def positive_loss(
        self, lse: Tensor, positive: Tensor, temperature: Scalar, reduction: str, **options: Any
    ) -> Tensor:
        return self.reduce(calls.positive_loss(lse, positive, temperature, "none", **options), reduction)

    def sum(self, x: Tensor) -> Tensor:
        return total_over(x, self.group)

    def reduce(self, loss_rows: Tensor, reduction: str, counted: Tensor | None = None) -> Tensor:
        if reduction != "mean":
            return sums_of.reduce(loss_rows, reduction)
        each = self._each(loss_rows)
        number = self.total * each if counted is None else self.sum(counted.sum()).clamp_min(1)
        return sums_of.total(loss_rows) * self.world / number

    def mean_stats(self, stats: ContrastiveStats, pairs: Tensor | None = None) -> ContrastiveStats:
        values = torch.stack(stats).double()
        weights = torch.full_like(values, self.count)
        if pairs is not None:
            weights[2:] = pairs
        # A rank without any such pair has a mean of NaN, and no part in theirs.
        sums = self.sum(torch.stack([torch.where(weights > 0, values * weights, 0), weights]))
        return ContrastiveStats(*(sums[0] / sums[1]).to(stats[0].dtype))

    def of_reference(
        self,
        function: Callable[..., Any],
        tensors: dict[str, Tensor],
        options: dict[str, Any],
        reduction: str,
        return_stats: bool,
        counted: Tensor | None = None,
        image_first: bool = False,
    ) -> Loss:
        """A loss's formula over the global batch, of which the rank takes its own sums_of.

        tensors: the arguments that are spread over the ranks; options: the others. Where an image has several losses,
        they are a batch apart, or with image_first beside each other.
        """
        everything = {name: self.in_order(x) for name, x in tensors.items()}
        results = function(**everything, **options, reduction="none", return_stats=return_stats)
        loss_rows, stats = results if return_stats else (results, None)
        own = slice(self.first, self.first + self.count)
        own_rows = loss_rows.view(self.total, -1)[own] if image_first else loss_rows.view(-1, self.total)[:, own]
        loss = self.reduce(own_rows.flatten(), reduction, counted)
        return (loss, stats) if return_stats else loss
