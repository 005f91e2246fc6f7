"""Losses of queries against keys, as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import checks, functional
from ..memory.queue import NegativeQueue
from ._base import LossModule

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Temperature


class InfoNCELoss(LossModule):
    """`functional.info_nce` as a module: InfoNCE (van den Oord et al. 2018, eq. 4), MoCo's loss.

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> query, key = torch.randn(2, 256, 128)
        >>> loss = InfoNCELoss(temperature=0.2)(query, key, NegativeQueue(size=4096, dim=128))
    """

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        negatives: Tensor | NegativeQueue | None = None,
        *,
        weights: Tensor | None = None,
        exclude: tuple[Tensor, Tensor] | None = None,
    ) -> Loss:
        """The loss of N queries, (), or (N,) for "none".

        Args:
            query, positive: (N, D).
            negatives: None (in batch), (M, D), (N, M, D) or a queue.
            weights: (N,) floats.
            exclude: (ids of the queries, ids of the negatives); those with the query's id are left out.
        """
        return functional.info_nce(query, positive, negatives, exclude=exclude, **self._options(weights))


class MultiPositiveInfoNCELoss(LossModule):
    """`functional.multi_positive_info_nce` as a module: InfoNCE with several positives a query.

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        form: "out" (the mean over positives outside the log) or "in".

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = MultiPositiveInfoNCELoss(form="in")(torch.randn(256, 128), torch.randn(256, 4, 128))
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
        form: str = "out",
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)
        checks.choice("form", form, checks.FORMS)
        self.form = form

    def forward(
        self,
        query: Tensor,
        positives: Tensor,
        negatives: Tensor | NegativeQueue | None = None,
        *,
        weights: Tensor | None = None,
    ) -> Loss:
        """The loss of N queries, (), or (N,) for "none".

        Args:
            query: (N, D).
            positives: (N, P, D).
            negatives: None (in batch), (M, D) or a queue.
            weights: (N,) floats.
        """
        return functional.multi_positive_info_nce(
            query, positives, negatives, form=self.form, **self._options(weights)
        )  # fmt: skip


class MoCoV3Loss(LossModule):
    """`functional.moco_v3` as a module: symmetric, times 2 * temperature (Chen et al. 2021, algorithm 1).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = MoCoV3Loss(temperature=0.2)(*torch.randn(4, 256, 128))
    """

    def __init__(
        self,
        temperature: Temperature = 1.0,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)

    def forward(
        self, query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, *, weights: Tensor | None = None
    ) -> Loss:
        """(N, D) each: predictions of both views and their momentum embeddings. Returns (), or (N,) for "none"."""
        return functional.moco_v3(query1, query2, key1, key2, **self._options(weights))
