"""Losses of queries against keys: in the batch, of a tensor, or of a queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas.loss_parts import symmetric_sum
from ..formulas.rows import finite_rows, in_full_precision, unit_rows
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


def _negative_rows(negatives: Any) -> Tensor:
    """A queue's rows as they are, a tensor's rows normalised."""
    if isinstance(negatives, Tensor):
        return unit_rows(negatives)
    # Cloned because MoCo enqueues between the loss and its backward, and autograd keeps this.
    return finite_rows(negatives.queue.clone())


@in_full_precision
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
    exclude: Any = None,
) -> Loss:
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    loss_i = log(exp(s <q_i, k_i>) + sum_j exp(s <q_i, n_j>)) - s <q_i, k_i>. The n_j are the other
    positives (negatives=None), the rows of a tensor (M, D), row i's own rows of a tensor (N, M, D),
    or the rows of a NegativeQueue, which are taken as they are; all else is normalised here.
    exclude: (ids of the queries, ids of the negatives); those with the query's id are left out.
    """
    temperature = in_range(temperature)
    q, k = unit_rows(query), unit_rows(positive)
    positive_similarity = (q * k).sum(1)
    if negatives is None:
        similarity = q @ k.T
        negative = ~torch.eye(q.shape[0], dtype=torch.bool, device=q.device)
    else:
        n = _negative_rows(negatives).to(q.dtype)
        similarity = q @ n.T if n.dim() == 2 else (n @ q[:, :, None])[:, :, 0]
        negative = torch.ones_like(similarity, dtype=torch.bool)
    if exclude is not None:
        negative = negative & (exclude[0][:, None] != exclude[1])
    # The positive's column is the first one, in batch too.
    positive_logits = positive_similarity[:, None] / temperature
    negative_logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    logits = torch.cat([positive_logits, negative_logits], 1)
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    positive_mean = positive_similarity.detach().mean()
    return loss, stats_from(loss_rows, similarity, positive_similarity, positive_mean, negative, temperature)


@in_full_precision
def moco_v3(
    query1: Tensor,
    query2: Tensor,
    key1: Tensor,
    key2: Tensor,
    temperature: Scalar = 1.0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """MoCo v3 (Chen et al. 2021, algorithm 1): 2 temperature (ctr(q1, k2) + ctr(q2, k1)), one loss an image."""
    first = info_nce(query1, key2, None, temperature, "none", return_stats)
    second = info_nce(query2, key1, None, temperature, "none", return_stats)
    return symmetric_sum(first, second, 2 * in_range(temperature), reduction, return_stats)


@in_full_precision
def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    form: str = "out",
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """InfoNCE with P positives a query, (N, P, D): SupCon's two forms over the query's positives and its negatives.

    With Z_i the sum over both: out: log Z_i - mean_p s <q_i, k_ip>; in: log Z_i - log mean_p exp(s <q_i, k_ip>).
    The negatives: as for `info_nce`; None: the other queries' positives.
    """
    temperature = in_range(temperature)
    q, k = unit_rows(query), unit_rows(positives)
    of_positives = (k @ q[:, :, None])[:, :, 0]
    if negatives is None:
        image = torch.arange(q.shape[0], device=q.device)
        similarity, negative = q @ k.flatten(0, 1).T, image[:, None] != image.repeat_interleave(k.shape[1])
    else:
        n = _negative_rows(negatives).to(q.dtype)
        similarity = q @ n.T
        negative = torch.ones_like(similarity, dtype=torch.bool)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    positive_logits = of_positives / temperature
    whole = torch.cat([positive_logits, logits], 1).logsumexp(1)
    if form == "out":
        loss_rows = whole - positive_logits.mean(1)
    else:
        loss_rows = whole - positive_logits.logsumexp(1) + math.log(k.shape[1])
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    best = of_positives.gather(1, positive_logits.argmax(1, keepdim=True))[:, 0]
    return loss, stats_from(loss_rows, similarity, best, of_positives.detach().mean(), negative, temperature)
