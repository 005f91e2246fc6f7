"""Parts of losses that cost O(N), written once for the reference and for the path with kernels.

tests/oracle.py, in float64 NumPy, holds them: a fault here would be on both sides of the other tests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .statistics import ContrastiveStats, stats_from
from .sums import reduce, row_totals, softplus

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


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


def symmetric_sum(first: Any, second: Any, factor: Scalar, reduction: str, return_stats: bool) -> Loss:
    """factor * (first + second) of two losses of the same images, and the mean of their statistics."""
    if not return_stats:
        return reduce(factor * (first + second), reduction)
    loss = reduce(factor * (first[0] + second[0]), reduction)
    return loss, ContrastiveStats(*((x + y) / 2 for x, y in zip(first[1], second[1], strict=True)))


def nce_of(
    similarity: Tensor, images: int, normalizer: Scalar, temperature: Scalar, reduction: str, return_stats: bool
) -> Loss:
    """The loss of `instance_nce` from the similarities (N, 1 + m) of each row with its own image and the noise."""
    noise = similarity.shape[1] - 1
    # log(P n / m)
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.double()
    else:
        normalizer = torch.full((), normalizer, dtype=torch.float64, device=similarity.device)
    logits = similarity / temperature - (normalizer.log() + math.log(noise / images)).to(similarity.dtype)
    loss_rows = softplus(-logits[:, 0]) + row_totals(softplus(logits[:, 1:]))
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    negative, positive = similarity[:, 1:], similarity[:, 0]
    is_negative = torch.ones_like(negative, dtype=torch.bool)
    return loss, stats_from(loss_rows, negative, positive, positive.detach().mean(), is_negative, temperature)
