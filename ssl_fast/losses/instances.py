"""Instance discrimination against a memory bank, as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import checks, functional
from ..functional.instances import checked_rows, instance_nce_estimating
from ..memory.bank import MemoryBank
from ._base import LossModule

if TYPE_CHECKING:
    from ..annotations import Loss, Temperature


class InstanceDiscriminationLoss(LossModule):
    """Each image its own class, against a memory bank of all (Wu et al. 2018): in full, or with sampled negatives.

    Args:
        temperature, reduction, normalize, return_stats: as for `NTXentLoss`.
        negatives: None, the exact softmax over the bank (`functional.instance_discrimination`); or a number m, the
            original's noise-contrastive estimation with m sampled images a row (`functional.instance_nce`), whose
            buffer `normalizer` is set from the first batch and kept.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> bank, index = MemoryBank(size=1000, dim=128, momentum=0.5), torch.arange(256)
        >>> features = torch.randn(256, 128, requires_grad=True)
        >>> InstanceDiscriminationLoss(0.07)(features, index, bank).backward()
        >>> bank.update_(index, features.detach())
    """

    normalizer: Tensor

    def __init__(
        self,
        temperature: Temperature = 0.07,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        negatives: int | None = None,
    ):
        super().__init__(temperature, reduction=reduction, normalize=normalize, return_stats=return_stats)
        if negatives is not None:
            checks.sizes(negatives=negatives)
            self.register_buffer("normalizer", torch.zeros((), dtype=torch.float64))
        self.negatives = negatives

    def forward(
        self, features: Tensor, index: Tensor, bank: Tensor | MemoryBank, *, weights: Tensor | None = None
    ) -> Loss:
        """The loss of N images, (), or (N,) for "none".

        Args:
            features: (N, D).
            index: (N,) integers, the images' rows in the bank.
            bank: (n, D) or a `MemoryBank`.
            weights: (N,) floats.
        """
        options = self._options(weights)
        del options["group"]
        if self.negatives is None:
            return functional.instance_discrimination(features, index, bank, **options)
        # Every check comes before noise is drawn and before the normalizer is set.
        rows = checked_rows(features, index, bank)
        if weights is not None:
            checks.weights(weights, features)
        if self.normalizer.device != features.device:  # once: left on the CPU, it would be copied in every step
            self.normalizer = self.normalizer.to(features.device)
        # With replacement, as the original's uniform draw: the image itself may be among them.
        noise = torch.randint(rows.shape[0], (features.shape[0], self.negatives), device=features.device)
        return instance_nce_estimating(features, index, noise, rows, self.normalizer, **options)
