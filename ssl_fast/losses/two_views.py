"""Losses of two views of each image, as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import checks, functional
from ._base import LossModule

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Temperature


class NTXentLoss(LossModule):
    """`functional.nt_xent` as a module: NT-Xent (Chen et al. 2020, eq. 1) over the 2N rows of two views.

    Args:
        temperature: a number of size 1e-8 to 1e8, a 0-D tensor or Parameter, which gets its gradient, or a
            `LearnableTemperature`.
        reduction: "mean", "sum" or "none".
        normalize: whether the rows are normalised inside; False takes them as they are.
        return_stats: whether a call returns (loss, ContrastiveStats).
        group: None, or the process group (or `Ring`) over which the batch is spread (`ssl_fast.parallel`).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> z1, z2 = torch.randn(2, 256, 128, requires_grad=True)
        >>> NTXentLoss(temperature=0.1)(z1, z2).backward()
    """

    def forward(self, z1: Tensor, z2: Tensor, *, weights: Tensor | None = None) -> Loss:
        """z1, z2: (N, D), row i of both from the same image. weights: (N,). Returns (), or (2N,) for "none"."""
        return functional.nt_xent(z1, z2, **self._options(weights))


class DCLLoss(LossModule):
    """`functional.dcl` as a module: decoupled contrastive loss (Yeh et al. 2022, eq. 6).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        sigma: None, or DCLW's; see `DCLWLoss`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = DCLLoss(temperature=0.1)(*torch.randn(2, 256, 128))
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
        sigma: float | None = None,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)
        if sigma is not None:
            checks.number("sigma", sigma, 1e-8)
        self.sigma = sigma

    def forward(self, z1: Tensor, z2: Tensor, *, weights: Tensor | None = None) -> Loss:
        """z1, z2: (N, D), N at least 2, row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.dcl(z1, z2, sigma=self.sigma, **self._options(weights))


class DCLWLoss(DCLLoss):
    """`DCLLoss` whose positives are weighted by 2 - N softmax(similarity / sigma) (Yeh et al. 2022, eq. 7).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        sigma: the width of the weights' distribution.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = DCLWLoss(temperature=0.1, sigma=0.5)(*torch.randn(2, 256, 128))
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
        sigma: float = 0.5,
    ):
        super().__init__(
            temperature,
            reduction=reduction,
            normalize=normalize,
            return_stats=return_stats,
            group=group,
            sigma=sigma,
        )


class HardNegativeNTXentLoss(LossModule):
    """`functional.hard_negative_nt_xent` as a module: hard negatives weigh more (Robinson et al. 2021).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        beta: 0 weighs all negatives alike, larger numbers the similar ones more.
        tau_plus: probability that a negative is of the same class.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = HardNegativeNTXentLoss(beta=0.5)(*torch.randn(2, 256, 128))
    """

    def __init__(
        self,
        temperature: Temperature = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
        beta: float = 1.0,
        tau_plus: float = 0.0,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)
        checks.number("beta", beta, 0.0)
        checks.number("tau_plus", tau_plus, 0.0, 1.0)
        self.beta = beta
        self.tau_plus = tau_plus

    def forward(self, z1: Tensor, z2: Tensor, *, weights: Tensor | None = None) -> Loss:
        """z1, z2: (N, D), N at least 2, row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.hard_negative_nt_xent(
            z1, z2, beta=self.beta, tau_plus=self.tau_plus, **self._options(weights)
        )  # fmt: skip
