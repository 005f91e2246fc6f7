"""Losses of images and their texts: a and b (N, D), whose row i belongs together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.rows import in_full_precision, rows_of
from ..formulas.scalars import in_range, inverse
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce, repeated, softplus

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def clip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.07,
    *,
    logit_scale: Scalar | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3): each row of a against all of b, and of b against all of a.

    2N losses, log sum_k exp(s <u_i, v_k>) - s <u_i, v_i> first, then log sum_k exp(s <u_k, v_i>) - s <u_i, v_i>.
    """
    scale = in_range(inverse(temperature) if logit_scale is None else logit_scale)
    similarity = rows_of(a, normalize) @ rows_of(b, normalize).T  # (N, N)
    logits, positive = scale * similarity, similarity.diagonal().repeat(2)  # (N, N), (2N,)
    loss_rows = torch.cat([logits.logsumexp(1), logits.logsumexp(0)]) - scale * positive
    loss = reduce(loss_rows, reduction, repeated(weights, len(loss_rows)))
    if not return_stats:
        return loss
    negative = ~torch.eye(a.shape[0], dtype=torch.bool, device=a.device).repeat(2, 1)
    both = torch.cat([similarity, similarity.T])
    return loss, stats_from(loss_rows, both, positive, positive.detach().mean(), negative, scale)


@in_full_precision
def siglip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.1,
    *,
    logit_scale: Scalar | None = None,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    bias: Scalar = -10.0,
) -> Loss:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k log(1 + exp(-z_ik (s <u_i, v_k> + bias))), z_ik = 1 for k = i, else -1.
    """
    scale = in_range(inverse(temperature) if logit_scale is None else logit_scale)
    similarity = rows_of(a, normalize) @ rows_of(b, normalize).T  # (N, N)
    itself = torch.eye(a.shape[0], dtype=torch.bool, device=a.device)
    logits = scale * similarity + bias
    loss_rows = softplus(torch.where(itself, -logits, logits)).sum(1)  # (N,)
    loss = reduce(loss_rows, reduction, weights)
    if not return_stats:
        return loss
    positive, both = similarity.diagonal().repeat(2), torch.cat([similarity, similarity.T])
    stats = stats_from(loss_rows.repeat(2), both, positive, positive.detach().mean(), ~itself.repeat(2, 1), scale)
    return loss, stats
