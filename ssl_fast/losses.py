"""The losses as modules: each holds its options and calls the function of the same name."""

from __future__ import annotations

from torch import Tensor, nn

from . import checks, functional
from .queue import NegativeQueue


class _Loss(nn.Module):
    """Options shared by the losses, checked once here."""

    def __init__(self, temperature: float | Tensor = 0.1, reduction: str = "mean"):
        super().__init__()
        checks.temperature(temperature)
        checks.reduction(reduction)
        self.temperature = temperature
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class NTXentLoss(_Loss):
    """`functional.nt_xent` as a module: NT-Xent (Chen et al. 2020, eq. 1) over the 2N rows of two views.

    temperature: a number of size 1e-8 to 1e8, or a 0-D tensor or Parameter, which gets its gradient.
    reduction: "mean", "sum" or "none". Raises ValueError or TypeError for others.

    >>> loss = NTXentLoss(temperature=0.1)(z1, z2)  # z1, z2: (N, D), normalised inside
    """

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2: (N, D), row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.nt_xent(z1, z2, self.temperature, self.reduction)


class InfoNCELoss(_Loss):
    """`functional.info_nce` as a module: InfoNCE (van den Oord et al. 2018, eq. 4), MoCo's loss.

    temperature, reduction: as for `NTXentLoss`.

    >>> loss = InfoNCELoss(temperature=0.2)(query, positive, queue)  # queue: NegativeQueue
    """

    def forward(self, query: Tensor, positive: Tensor, negatives: Tensor | NegativeQueue | None = None) -> Tensor:
        """query, positive: (N, D); negatives: None (in batch), (M, D), (N, M, D) or a queue. Returns () or (N,)."""
        return functional.info_nce(query, positive, negatives, self.temperature, self.reduction)
