"""Parts of losses that cost O(N), written once for the reference and for the path with kernels.

The kernels' path and the reference both call these functions, so only tests/helpers/oracle.py, float64 loops written
from the papers, can see a fault here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .scalars import Scalar
from .statistics import ContrastiveStats
from .sums import row_totals, softplus


def von_mises_fisher_weights(similarity: Tensor, sigma: float) -> Tensor:
    """2 - N softmax(<u_i, v_i> / sigma) of N pairs, without gradient (Yeh et al. 2022, eq. 7)."""
    return 2 - similarity.shape[0] * (similarity.detach() / sigma).softmax(0)


def hard_negative_log_sum(
    log_mean: Tensor, positive_logits: Any, scale: Any, negatives: int, tau_plus: float
) -> Tensor:
    """log G of each row, from the log of the negatives' reweighted mean. positive_logits: only with tau_plus."""
    if tau_plus:
        # By the larger of the two: neither exponential overflows, and not both underflow.
        largest = torch.maximum(log_mean, positive_logits).detach()
        mean = ((log_mean - largest).exp() - tau_plus * (positive_logits - largest).exp()) / (1 - tau_plus)
        none_left = mean <= 0  # not for NaN, which stays
        log_mean = (mean.masked_fill(none_left, 1).log() + largest).masked_fill(none_left, float("-inf"))
    log_mean = torch.maximum(log_mean, torch.zeros_like(log_mean) - abs(scale))
    return log_mean + log_mean.new_full((), negatives).log()


def symmetric_sum(first: Any, second: Any, factor: Scalar) -> tuple[Tensor, ContrastiveStats | None]:
    """(factor * (first + second), the mean statistics) of two losses of the same images, (N,) or (loss, statistics)."""
    if isinstance(first, Tensor):
        return factor * (first + second), None
    stats = ContrastiveStats(*((x + y) / 2 for x, y in zip(first[1], second[1], strict=True)))
    return factor * (first[0] + second[0]), stats


def noise_contrastive_loss_rows(similarity: Tensor, images: int, normalizer: Scalar, scale: Scalar) -> Tensor:
    """The rows' losses (N,) of noise-contrastive estimation (Wu et al. 2018, eq. 4 to 8).

    Args:
        similarity: (N, 1 + m), of each row with its own image and with m sampled ones.
        images: their number n in the bank.
        normalizer: the estimate of the softmax's sum.
        scale: a number or a 0-D tensor.
    """
    noise = similarity.shape[1] - 1
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.double()
    else:
        normalizer = torch.full((), normalizer, dtype=torch.float64, device=similarity.device)
    # log(P n / m), whose sigmoid is h.
    logits = similarity * scale - (normalizer.log() + math.log(noise / images)).to(similarity.dtype)
    return softplus(-logits[:, 0]) + row_totals(softplus(logits[:, 1:]))


def nce_estimate(similarity: Tensor, images: int, scale: Scalar) -> Tensor:
    """n times the mean of exp(scale similarity) over (N, 1 + m), the first batch's estimate of the softmax's sum.

    0-D float64, kept from 1e-290 to 1e290, where the coldest temperatures would give 0 or Inf.
    """
    return images * (similarity.double() * scale).exp().mean().clamp(1e-290, 1e290)
