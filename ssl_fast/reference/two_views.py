"""Losses of two views of each image: z1 and z2 (N, D), whose row i is of image i."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.loss_parts import hard_negative_log_sum, von_mises_fisher_weights
from ..formulas.rows import in_full_precision, rows_of
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce, repeated, softplus

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: Scalar = 0.1,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """NT-Xent of SimCLR (Chen et al. 2020, eq. 1) over the 2N rows of two views.

    loss_i = log sum_{k != i} exp(s <u_i, u_k>) - s <u_i, u_p(i)>, p(i) the row of the other view.
    """
    temperature = in_range(temperature)
    u, partner, negative = _two_views(z1, z2, normalize)  # (2N, D), (2N,), (2N, 2N)
    itself = torch.eye(u.shape[0], dtype=torch.bool, device=u.device)
    similarity = u @ u.T  # (2N, 2N)
    logits = (similarity / temperature).masked_fill(itself, float("-inf"))
    positive_logits = logits.gather(1, partner[:, None])  # (2N, 1)
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]  # (2N,)
    loss = reduce(loss_rows, reduction, repeated(weights, len(loss_rows)))
    if not return_stats:
        return loss
    positive = similarity.gather(1, partner[:, None])[:, 0]
    return loss, stats_from(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


def _two_views(z1: Tensor, z2: Tensor, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(rows u (2N, D), the partner's place of each (2N,), the mask of its negatives (2N, 2N))."""
    u = rows_of(torch.cat([z1, z2]), normalize)
    place = torch.arange(u.shape[0], device=u.device)
    image = place % z1.shape[0]
    return u, place.roll(z1.shape[0]), image[:, None] != image


@in_full_precision
def dcl(
    z1: Tensor,
    z2: Tensor,
    temperature: Scalar = 0.1,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    sigma: float | None = None,
) -> Loss:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6) over the 2N rows of two views: the positive leaves the sum.

    loss_i = log sum_{k != i, p(i)} exp(s <u_i, u_k>) - w_i s <u_i, u_p(i)>, w_i = 1 or, with sigma, DCLW's weight.
    """
    temperature = in_range(temperature)
    u, partner, negative = _two_views(z1, z2, normalize)
    similarity = u @ u.T  # (2N, 2N)
    positive = similarity.gather(1, partner[:, None])[:, 0]  # (2N,)
    pull = 1 if sigma is None else von_mises_fisher_weights(positive[: z1.shape[0]], sigma).repeat(2)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    loss_rows = logits.logsumexp(1) - pull * positive / temperature  # (2N,)
    loss = reduce(loss_rows, reduction, repeated(weights, len(loss_rows)))
    if not return_stats:
        return loss
    return loss, stats_from(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def hard_negative_nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: Scalar = 0.5,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    beta: float = 1.0,
    tau_plus: float = 0.0,
) -> Loss:
    """Contrastive loss with hard negatives (Robinson et al. 2021, eq. 4 and section 3.2) over the 2N rows of two views.

    With n the M = 2N - 2 negatives' exp(s <u_i, u_k>) and p the positive's: loss_i = log(1 + G / p),
    G = max(M (mean(n^(1 + beta)) / mean(n^beta) - tau_plus p) / (1 - tau_plus), M exp(-|s|)).
    """
    temperature = in_range(temperature)
    u, partner, negative = _two_views(z1, z2, normalize)
    similarity = u @ u.T  # (2N, 2N)
    positive = similarity.gather(1, partner[:, None])[:, 0]  # (2N,)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    # The log of the sum of the weights n^beta; with beta = 0 that of the number of negatives.
    log_weight_sum = (beta * logits.masked_fill(~negative, 0)).masked_fill(~negative, float("-inf")).logsumexp(1)
    log_mean = ((1 + beta) * logits).logsumexp(1) - log_weight_sum
    positive_logits = positive / temperature
    log_sum = hard_negative_log_sum(log_mean, positive_logits, 1 / temperature, u.shape[0] - 2, tau_plus)
    loss_rows = softplus(log_sum - positive_logits)  # (2N,)
    loss = reduce(loss_rows, reduction, repeated(weights, len(loss_rows)))
    if not return_stats:
        return loss
    return loss, stats_from(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)
