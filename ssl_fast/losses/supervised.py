"""The loss of rows with labels, as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import checks, functional
from ._base import LossModule

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Temperature


class SupConLoss(LossModule):
    """`functional.supcon` as a module: supervised contrastive loss (Khosla et al. 2020) of labels or many views.

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        form: "out" (eq. 2, the usual one) or "in" (eq. 3).
        count_without_positive: whether rows without a positive, whose loss is 0, count in the mean.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = SupConLoss(temperature=0.1)(torch.randn(256, 128), torch.arange(256) % 10)
        >>> loss = SupConLoss(temperature=0.1)(torch.randn(128, 2, 128))  # two views, each image its own class
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
        count_without_positive: bool = True,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)
        checks.choice("form", form, checks.FORMS)
        checks.flags(count_without_positive=count_without_positive)
        self.form = form
        self.count_without_positive = count_without_positive

    def forward(self, features: Tensor, labels: Tensor | None = None, *, weights: Tensor | None = None) -> Loss:
        """The loss of all rows, (), or one a row for "none".

        Args:
            features: (N, D) with labels (N,), or (B, V, D) with labels (B,) or None.
            labels: integers.
            weights: (N,) or (B,) floats.
        """
        return functional.supcon(
            features,
            labels,
            form=self.form,
            count_without_positive=self.count_without_positive,
            **self._options(weights),
        )
