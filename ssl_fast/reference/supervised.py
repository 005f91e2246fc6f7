"""The loss of rows with labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.classes import views_of
from ..formulas.rows import in_full_precision, unit_rows
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce_with_positives

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def supcon(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: Scalar = 0.1,
    form: str = "out",
    count_without_positive: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020): positives averaged outside (eq. 2) or inside the log (eq. 3).

    With P(i) the other rows of i's label: out: log sum_{k != i} exp(s <u_i, u_k>) - mean_{p in P(i)} s <u_i, u_p>;
    in: log sum_{k != i} exp(s <u_i, u_k>) - log mean_{p in P(i)} exp(s <u_i, u_p>). Without positives 0.
    """
    temperature = in_range(temperature)
    rows, labels = views_of(features, labels)
    u = unit_rows(rows)
    itself = torch.eye(u.shape[0], dtype=torch.bool, device=u.device)
    same = labels[:, None] == labels
    positive, count = same & ~itself, same.sum(1) - 1
    similarity = u @ u.T
    logits = similarity / temperature
    whole = logits.masked_fill(itself, float("-inf")).logsumexp(1)
    if form == "out":
        attraction = logits.masked_fill(~positive, 0).sum(1) / count
    else:
        attraction = logits.masked_fill(~positive, float("-inf")).logsumexp(1) - count.to(u.dtype).log()
    # A row that is NaN stays NaN, alone too.
    bad = whole.isnan() | logits.diagonal().isnan()
    loss_rows = torch.where(count > 0, whole - attraction, 0).masked_fill(bad, float("nan"))
    loss = reduce_with_positives(loss_rows, count, reduction, count_without_positive)
    if not return_stats:
        return loss
    sign = torch.sign(1 / temperature) if isinstance(temperature, Tensor) else math.copysign(1.0, temperature)
    best = sign * (sign * similarity).masked_fill(~positive, float("-inf")).amax(1)
    positive_mean = similarity.detach().masked_fill(~positive, 0).sum() / count.sum()
    return loss, stats_from(loss_rows, similarity, best, positive_mean, ~same, temperature)
