"""Losses of images and their texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.rows import finite_rows, in_full_precision, unit_rows
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce, softplus

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def clip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3): each row of a against all of b, and of b against all of a.

    2N losses, log sum_k exp(s <u_i, v_k>) - s <u_i, v_i> first, then log sum_k exp(s <u_k, v_i>) - s <u_i, v_i>.
    """
    temperature = in_range(temperature)
    prepared = unit_rows if normalize else finite_rows
    similarity = prepared(a) @ prepared(b).T
    logits, positive = similarity / temperature, similarity.diagonal().repeat(2)
    loss_rows = torch.cat([logits.logsumexp(1), logits.logsumexp(0)]) - positive / temperature
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    negative = ~torch.eye(a.shape[0], dtype=torch.bool, device=a.device).repeat(2, 1)
    both = torch.cat([similarity, similarity.T])
    return loss, stats_from(loss_rows, both, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def siglip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.1,
    bias: Scalar = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k log(1 + exp(-z_ik (s <u_i, v_k> + bias))), z_ik = 1 for k = i, else -1.
    """
    temperature = in_range(temperature)
    prepared = unit_rows if normalize else finite_rows
    similarity = prepared(a) @ prepared(b).T
    itself = torch.eye(a.shape[0], dtype=torch.bool, device=a.device)
    logits = similarity / temperature + bias
    loss_rows = softplus(torch.where(itself, -logits, logits)).sum(1)
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    positive, both = similarity.diagonal().repeat(2), torch.cat([similarity, similarity.T])
    stats = stats_from(loss_rows.repeat(2), both, positive, positive.detach().mean(), ~itself.repeat(2, 1), temperature)
    return loss, stats
