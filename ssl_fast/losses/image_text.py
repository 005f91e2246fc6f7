"""Losses of images and their texts, as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import checks, functional
from ._base import LossModule

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Scalar, Temperature


class ClipLoss(LossModule):
    """`functional.clip` as a module: CLIP's symmetric cross-entropy (Radford et al. 2021, fig. 3).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> images, texts = torch.randn(2, 256, 512)
        >>> loss = ClipLoss()(images, texts, logit_scale=torch.tensor(14.3, requires_grad=True))
    """

    def __init__(
        self,
        temperature: Temperature = 0.07,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)

    def forward(
        self, a: Tensor, b: Tensor, logit_scale: Scalar | None = None, *, weights: Tensor | None = None
    ) -> Loss:
        """The loss of N pairs, (), or for "none" (2N,).

        Args:
            a, b: (N, D), images and texts.
            logit_scale: 1 / temperature, in its place: a number or a 0-D tensor, which gets its gradient.
            weights: (N,) floats.
        """
        return functional.clip(a, b, logit_scale=logit_scale, **self._options(weights))


class SigLipLoss(LossModule):
    """`functional.siglip` as a module: pairwise sigmoid loss (Zhai et al. 2023, eq. 1).

    Args:
        temperature, reduction, normalize, return_stats, group: as for `NTXentLoss`.
        bias: a number, or a 0-D tensor or Parameter, which gets its gradient.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> images, texts = torch.randn(2, 256, 512)
        >>> loss = SigLipLoss(bias=-10.0)(images, texts, logit_scale=10.0)
    """

    def __init__(
        self,
        temperature: Temperature = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
        bias: Scalar = -10.0,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats, group=group)
        checks.scalar("bias", bias)
        self.bias = bias

    def forward(
        self, a: Tensor, b: Tensor, logit_scale: Scalar | None = None, *, weights: Tensor | None = None
    ) -> Loss:
        """The loss of N pairs, (), or for "none" (N,).

        Args:
            a, b: (N, D), images and texts.
            logit_scale: 1 / temperature, in its place: a number or a 0-D tensor, which gets its gradient.
            weights: (N,) floats.
        """
        return functional.siglip(a, b, logit_scale=logit_scale, bias=self.bias, **self._options(weights))
