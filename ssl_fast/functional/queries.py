"""Losses of queries against keys: in the batch, of a tensor, or of a queue."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.classes import dense
from ..formulas.loss_parts import symmetric_sum
from ..formulas.rows import finite_rows, unit_rows
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import logsumexp, softplus, total
from ..memory.queue import NegativeQueue
from ..operators import calls
from ..operators.codes import ALL, IDS_DIFFER, REDUCTIONS
from ..parallel.batch import batch_of
from ..parallel.gathered import GatheredBatch
from ..parallel.local import LocalBatch
from . import _statistics
from ._dispatch import as_computed, runs_reference
from .similarity import pair_of_ids

if TYPE_CHECKING:
    from ..annotations import Group, Ids, Loss, Scalar


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | NegativeQueue | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
    exclude: tuple[Tensor, Tensor] | None = None,
    group: Group = None,
) -> Loss:
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    With q, k, n normalised: loss_i = logsumexp(q_i . [k_i, n_1, n_2, ...] / temperature)
    - q_i . k_i / temperature.

    query, positive: (N, D).
    negatives: None (the other rows of `positive`, one-sided), (M, D) shared by all queries, (N, M, D) row i's
        own, or a `NegativeQueue`, whose rows are used as they are. Tensors are normalised and get their
        gradient; a queue gets none and may be enqueued to before the backward pass.
    exclude: (ids of the queries (N,), ids of the negatives (M,)), integers: negatives with the query's own id,
        such as keys of the same image still in the queue, are left out. In batch the same Tensor twice.
    group: for negatives in the batch; others are the rank's own, as a queue that all ranks fill alike.
    """
    checks.pair("positive", positive, "query", query)
    rows = _negative_rows(query, negatives)
    temperature = checks.temperature(temperature, query.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    if exclude is not None:
        if rows is not None and rows.dim() == 3:
            raise ValueError("exclude: expected None with negatives of each query's own")
        exclude = pair_of_ids("exclude", exclude, positive, positive if rows is None else rows)
    if group is not None and rows is None:
        return _info_nce_across(query, positive, temperature, reduction, return_stats, exclude, batch_of(group, query))
    if runs_reference("info_nce", query):
        return reference.info_nce(query, positive, negatives, temperature, reduction, return_stats, exclude)
    normalize = isinstance(negatives, Tensor)
    if exclude is not None:
        return _info_nce_by_ids(
            query, positive, rows, normalize, temperature, reduction, return_stats, exclude, LocalBatch(query.shape[0])
        )  # fmt: skip
    loss, stats, *_ = torch.ops.ssl_fast.info_nce(
        query, positive, rows, normalize, *calls.split(temperature), REDUCTIONS.index(reduction), return_stats
    )
    return (loss, ContrastiveStats(*stats.unbind())) if return_stats else loss


def _info_nce_across(
    query: Tensor, positive: Tensor, temperature: Scalar, reduction: str, return_stats: bool, ids: Any, batch: Any
) -> Loss:
    if not isinstance(ids, tuple):
        ids = (batch.images(query.device),) * 2
    if runs_reference("info_nce", query):

        def formula(query: Tensor, positive: Tensor, ids: Any, **options: Any) -> Any:
            return reference.info_nce(query, positive, exclude=(ids, ids), **options)

        tensors = {"query": query, "positive": positive, "ids": ids[0]}
        return batch.of_reference(formula, tensors, {"temperature": temperature}, reduction, return_stats)
    return _info_nce_by_ids(query, positive, None, True, temperature, reduction, return_stats, ids, batch)


def _info_nce_by_ids(
    query: Tensor,
    positive: Tensor,
    rows: Tensor | None,
    normalize: bool,
    temperature: Scalar,
    reduction: str,
    return_stats: bool,
    ids: Any,
    batch: LocalBatch,
) -> Loss:
    query, positive = as_computed(query, positive)
    if rows is None:
        rows, normalize = positive, True
    elif not normalize:
        # Autograd keeps them, and MoCo enqueues before the backward pass.
        rows, ids = rows.clone(), (ids[0], ids[1].clone())
    similarities = calls.pair_similarity(query, positive)
    lse, ranks = batch.lse(
        query, rows, IDS_DIFFER, temperature, ids, (True, normalize), similarities if return_stats else None
    )
    loss = batch.positive_loss(lse, similarities, temperature, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, similarities, temperature, "none")
        u, v = unit_rows(query), (unit_rows if normalize else finite_rows)(batch.gather(rows))
        classes = dense(torch.cat([ids[0], batch.gather(ids[1])])).split((u.shape[0], v.shape[0]))
        excluded, equal = _statistics.equal_pairs(u, v, *classes)
    sums, pairs = (u.sum(0), v.sum(0)), u.shape[0] * v.shape[0] - equal
    positive_mean = total(similarities) / similarities.numel()
    stats = _statistics.statistics(loss_rows, ranks, positive_mean, sums, excluded, pairs)
    return loss, batch.mean_stats(stats, torch.stack([pairs.new_full((), u.shape[0]), pairs]))


def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Tensor | NegativeQueue | None = None,
    temperature: float | Tensor = 0.1,
    form: str = "out",
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """InfoNCE with several positives a query, in SupCon's two forms (Khosla et al. 2020, eq. 2 and 3).

    With Z_i the sum of exp(q_i . x / temperature) over the query's positives and its negatives, "out" is the mean
    over its positives of log Z_i - q_i . k_ip / temperature; "in" takes the log of the mean of their exponentials.

    query: (N, D). positives: (N, P, D), which get their gradient.
    negatives: None (the other queries' positives), (M, D) or a `NegativeQueue`, as for `info_nce`.
    Statistics: top-1 is whether a positive is the most similar. The rows' losses: (N,).
    """
    checks.embeddings("query", query)
    checks.embeddings("positives", positives, (3,))
    if positives.shape[::2] != query.shape:
        raise ValueError(
            f"positives: expected shape ({query.shape[0]}, positives, {query.shape[1]}), got {tuple(positives.shape)}"
        )
    checks.same_device("positives", positives, "query", query)
    rows = _negative_rows(query, negatives, (2,))
    temperature = checks.temperature(temperature, query.device)
    checks.choice("form", form, checks.FORMS)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    batch = batch_of(group if rows is None else None, query)
    if runs_reference("similarity_lse", query):
        options = {"temperature": temperature, "form": form}
        if isinstance(batch, GatheredBatch):
            tensors = {"query": query, "positives": positives}
            return batch.of_reference(
                reference.multi_positive_info_nce, tensors, options, reduction, return_stats
            )  # fmt: skip
        options |= {"reduction": reduction, "return_stats": return_stats}
        return reference.multi_positive_info_nce(query, positives, negatives, **options)
    query, positives = as_computed(query, positives)
    count, each = positives.shape[:2]
    flat = positives.flatten(0, 1)
    of_positives = calls.pair_similarity(query.repeat_interleave(each, 0), flat).view(count, each)
    logits = calls.scores(of_positives, temperature)
    best = _best(of_positives.detach(), temperature) if return_stats else None
    in_batch, mask, normalize = rows is None, ALL, isinstance(negatives, Tensor)
    ids: Ids = (None, None)
    if rows is None:
        image = batch.images(query.device)
        rows, mask, ids, normalize = flat, IDS_DIFFER, (image, image.repeat_interleave(each)), True
    elif not normalize:
        rows = rows.clone()  # autograd keeps it, and MoCo enqueues before the backward pass
    lse, ranks = batch.lse(query, rows, mask, temperature, ids, (True, normalize), best)
    of_all = logsumexp(logits)
    attraction = of_all - logits.mean(1) if form == "out" else math.log(each)
    loss_rows = (softplus(lse - of_all) + attraction).to(of_positives.dtype)
    loss = batch.reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        u, v = unit_rows(query).sum(0), (unit_rows if normalize else finite_rows)(rows).sum(0)
        excluded, pairs = (total(of_positives.double()), count * each) if in_batch else (0, 0)
        sums, pairs = (u, batch.sum(v)), count * (batch.total * each if in_batch else rows.shape[0]) - pairs
    positive_mean = total(of_positives) / of_positives.numel()
    return loss, batch.mean_stats(_statistics.statistics(loss_rows, ranks, positive_mean, sums, excluded, pairs))


def _best(similarities: Tensor, temperature: Scalar) -> Tensor:
    """The most similar of each row, by the sign of the temperature."""
    largest, smallest = similarities.amax(1), similarities.amin(1)
    if isinstance(temperature, Tensor):
        return torch.where(temperature > 0, largest, smallest)
    return largest if temperature > 0 else smallest


def moco_v3(
    query1: Tensor,
    query2: Tensor,
    key1: Tensor,
    key2: Tensor,
    temperature: float | Tensor = 1.0,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """MoCo v3's symmetric loss (Chen et al. 2021, algorithm 1): 2 temperature (ctr(query1, key2) + ctr(query2, key1)).

    ctr is in-batch InfoNCE: each query against all keys of the other view.

    query1, query2, key1, key2: (N, D), the two views' predictions and their momentum embeddings, which get a
        gradient only where they require one. One loss an image, (N,); statistics are the two directions' mean.
    """
    checks.pair("key2", key2, "query1", query1)
    checks.pair("query2", query2, "query1", query1)
    checks.pair("key1", key1, "query1", query1)
    temperature = checks.temperature(temperature, query1.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    if group is None and runs_reference("info_nce", query1):
        return reference.moco_v3(query1, query2, key1, key2, temperature, reduction, return_stats)
    first = info_nce(query1, key2, None, temperature, "none", return_stats, group=group)
    second = info_nce(query2, key1, None, temperature, "none", return_stats, group=group)
    batch = batch_of(group, query1)
    results = symmetric_sum(first, second, 2 * temperature, "none", return_stats)
    if not return_stats:
        return batch.reduce(results, reduction)
    return batch.reduce(results[0], reduction), results[1]


def _negative_rows(query: Tensor, negatives: Any, dims: tuple[int, ...] = (2, 3)) -> Tensor | None:
    """The checked tensor of negatives: (M, D), (N, M, D) or None."""
    if negatives is None:
        return None
    rows = negatives.queue if isinstance(negatives, NegativeQueue) else negatives
    if not isinstance(rows, Tensor):
        raise TypeError(f"negatives: expected None, a Tensor or a NegativeQueue, got {type(negatives).__name__}")
    checks.embeddings("negatives", rows, dims)
    if rows.shape[-1] != query.shape[1]:
        raise ValueError(f"negatives: expected last dimension {query.shape[1]} as query, got {tuple(rows.shape)}")
    if rows.dim() == 3 and rows.shape[0] != query.shape[0]:
        raise ValueError(f"negatives: expected {query.shape[0]} groups as query has rows, got {tuple(rows.shape)}")
    checks.same_device("negatives", rows, "query", query)
    return rows
