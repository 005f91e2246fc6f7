"""Losses of images against a bank of all n: features (N, D), index (N,) their places in the bank (n, D)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas.loss_parts import nce_estimate, noise_contrastive_loss_rows
from ..formulas.rows import finite_rows, in_full_precision, rows_of
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def instance_discrimination(
    features: Tensor,
    index: Tensor,
    bank: Any,
    temperature: Scalar = 0.07,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """Non-parametric softmax over all n images (Wu et al. 2018, eq. 2): the bank's row index_i is the positive.

    loss_i = log sum_j exp(s <u_i, bank_j>) - s <u_i, bank_index_i>. The bank's rows are taken as they are.
    """
    temperature = in_range(temperature)
    u = rows_of(features, normalize)
    similarity = u @ finite_rows(bank).to(u.dtype).T  # (N, n)
    positive = similarity.gather(1, index[:, None])[:, 0]  # (N,)
    logits = similarity / temperature
    loss_rows = logits.logsumexp(1) - positive / temperature
    loss = reduce(loss_rows, reduction, weights)
    if not return_stats:
        return loss
    negative = index[:, None] != torch.arange(bank.shape[0], device=u.device)
    return loss, stats_from(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def instance_nce(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Any,
    normalizer: Scalar,
    temperature: Scalar = 0.07,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """Noise-contrastive estimation of that softmax (Wu et al. 2018, eq. 4 to 8) with m sampled images, noise (N, m).

    With P = exp(s <u, bank_j>) / normalizer and h = P / (P + m / n):
    loss_i = -log h(index_i) - sum_j log(1 - h(noise_ij)).
    """
    temperature = in_range(temperature)
    similarity = _sampled(features, index, noise, bank, normalize)  # (N, 1 + m)
    loss_rows = noise_contrastive_loss_rows(similarity, bank.shape[0], normalizer, 1 / temperature)
    loss = reduce(loss_rows, reduction, weights)
    if not return_stats:
        return loss
    positive, negative = similarity[:, 0], similarity[:, 1:]
    is_negative = torch.ones_like(negative, dtype=torch.bool)
    return loss, stats_from(loss_rows, negative, positive, positive.detach().mean(), is_negative, temperature)


@torch.no_grad()
@in_full_precision
def nce_normalizer(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Any,
    temperature: Scalar = 0.07,
    *,
    normalize: bool = True,
) -> Tensor:
    """The original's estimate of the softmax's sum (Wu et al. 2018, section 3.2): n times the mean exponential."""
    similarity = _sampled(features, index, noise, bank, normalize)  # (N, 1 + m)
    return nce_estimate(similarity, bank.shape[0], 1 / in_range(temperature))


def _sampled(features: Tensor, index: Tensor, noise: Tensor, bank: Any, normalize: bool) -> Tensor:
    """(N, 1 + m) similarities of each row with its own image's row of the bank, then with the sampled ones."""
    u, rows = rows_of(features, normalize), finite_rows(bank)
    candidates = rows[torch.cat([index[:, None], noise], 1)].to(u.dtype)  # (N, 1 + m, D)
    return (candidates @ u[:, :, None])[:, :, 0]
