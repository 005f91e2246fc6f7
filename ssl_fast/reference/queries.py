"""Losses of queries (N, D) against keys: in the batch, of a tensor, or of a queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..formulas.loss_parts import symmetric_sum
from ..formulas.rows import finite_rows, in_full_precision, rows_of
from ..formulas.scalars import in_range
from ..formulas.statistics import stats_from
from ..formulas.sums import reduce

if TYPE_CHECKING:
    from ..annotations import Loss, Scalar


def _negative_rows(negatives: Any, normalize: bool) -> Tensor:
    """A tensor's rows, normalised where asked; a queue's rows as they are."""
    if isinstance(negatives, Tensor):
        return rows_of(negatives, normalize)
    # The clone is needed: MoCo enqueues between the loss and its backward pass, and autograd keeps these rows.
    return finite_rows(negatives.queue.clone())


@in_full_precision
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
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
    q, k = rows_of(query, normalize), rows_of(positive, normalize)
    positive_similarity = (q * k).sum(1)  # (N,)
    if negatives is None:
        similarity = q @ k.T  # (N, N)
        negative = ~torch.eye(q.shape[0], dtype=torch.bool, device=q.device)
    else:
        n = _negative_rows(negatives, normalize).to(q.dtype)
        similarity = q @ n.T if n.dim() == 2 else (n @ q[:, :, None])[:, :, 0]  # (N, M)
        negative = torch.ones_like(similarity, dtype=torch.bool)
    if exclude is not None:
        negative = negative & (exclude[0][:, None] != exclude[1])
    # The positive is the first column, also where the negatives are the batch's.
    positive_logits = positive_similarity[:, None] / temperature
    negative_logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    logits = torch.cat([positive_logits, negative_logits], 1)
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]  # (N,)
    loss = reduce(loss_rows, reduction, weights)
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
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
) -> Loss:
    """MoCo v3 (Chen et al. 2021, algorithm 1): 2 temperature (ctr(q1, k2) + ctr(q2, k1)), one loss an image."""
    options: dict[str, Any] = {"reduction": "none", "normalize": normalize, "return_stats": return_stats}
    first = info_nce(query1, key2, None, temperature, **options)
    second = info_nce(query2, key1, None, temperature, **options)
    loss_rows, stats = symmetric_sum(first, second, 2 * in_range(temperature))
    loss = reduce(loss_rows, reduction, weights)
    return loss if stats is None else (loss, stats)


@in_full_precision
def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    form: str = "out",
) -> Loss:
    """InfoNCE with P positives a query, (N, P, D): SupCon's two forms over the query's positives and its negatives.

    With Z_i the sum over both: out: log Z_i - mean_p s <q_i, k_ip>; in: log Z_i - log mean_p exp(s <q_i, k_ip>).
    The negatives: as for `info_nce`; None: the other queries' positives.
    """
    temperature = in_range(temperature)
    q, k = rows_of(query, normalize), rows_of(positives, normalize)
    of_positives = (k @ q[:, :, None])[:, :, 0]  # (N, P)
    if negatives is None:
        image = torch.arange(q.shape[0], device=q.device)
        similarity, negative = q @ k.flatten(0, 1).T, image[:, None] != image.repeat_interleave(k.shape[1])
    else:
        n = _negative_rows(negatives, normalize).to(q.dtype)
        similarity = q @ n.T  # (N, M)
        negative = torch.ones_like(similarity, dtype=torch.bool)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    positive_logits = of_positives / temperature
    whole = torch.cat([positive_logits, logits], 1).logsumexp(1)
    if form == "out":
        loss_rows = whole - positive_logits.mean(1)
    else:
        loss_rows = whole - positive_logits.logsumexp(1) + math.log(k.shape[1])
    loss = reduce(loss_rows, reduction, weights)
    if not return_stats:
        return loss
    best = of_positives.gather(1, positive_logits.argmax(1, keepdim=True))[:, 0]
    return loss, stats_from(loss_rows, similarity, best, of_positives.detach().mean(), negative, temperature)
