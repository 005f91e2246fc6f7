"""The loss of rows with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formulas.classes import views_of
from ..formulas.rows import in_full_precision, rows_of
from ..formulas.scalars import in_range, sign_of
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce, repeated

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


@in_full_precision
def supcon(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: Scalar = 0.1,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    form: str = "out",
    count_without_positive: bool = True,
) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020): positives averaged outside (eq. 2) or inside the log (eq. 3).

    With P(i) the other rows of i's label: out: log sum_{k != i} exp(s <u_i, u_k>) - mean_{p in P(i)} s <u_i, u_p>;
    in: log sum_{k != i} exp(s <u_i, u_k>) - log mean_{p in P(i)} exp(s <u_i, u_p>). Without positives 0.
    """
    temperature = in_range(temperature)
    rows, labels = views_of(features, labels)  # (N, D) and (N,), N = B V of features (B, V, D)
    u = rows_of(rows, normalize)
    itself = torch.eye(u.shape[0], dtype=torch.bool, device=u.device)
    same = labels[:, None] == labels
    positive, count = same & ~itself, same.sum(1) - 1
    similarity = u @ u.T  # (N, N)
    logits = similarity / temperature
    whole = logits.masked_fill(itself, float("-inf")).logsumexp(1)
    if form == "out":
        attraction = logits.masked_fill(~positive, 0).sum(1) / count
    else:
        attraction = logits.masked_fill(~positive, float("-inf")).logsumexp(1) - count.to(u.dtype).log()
    # A row that holds NaN has a loss of NaN, also where no other row has its label.
    bad = whole.isnan() | logits.diagonal().isnan()
    loss_rows = torch.where(count > 0, whole - attraction, 0).masked_fill(bad, float("nan"))
    counted = None if count_without_positive else count > 0
    loss = reduce(loss_rows, reduction, repeated(weights, len(loss_rows), image_first=True), counted)
    if not return_stats:
        return loss
    sign = sign_of(temperature, u.dtype)
    best = sign * (sign * similarity).masked_fill(~positive, float("-inf")).amax(1)
    positive_mean = similarity.detach().masked_fill(~positive, 0).sum() / count.sum()
    return loss, stats_from(loss_rows, similarity, best, positive_mean, ~same, temperature)
