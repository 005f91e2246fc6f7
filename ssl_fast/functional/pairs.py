"""Losses of queries against keys: a queue, the other rows of the batch, or another modality."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import checks, reference, similarity
from ..queue import NegativeQueue
from ..rows import ContrastiveStats, finite_rows, logsumexp, reduce, softplus, total, unit_rows
from ..similarity import ALL, IDS_DIFFER, NOT_SELF, split
from .primitive import as_computed, pair_of_ids, runs_reference


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | NegativeQueue | None = None,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
    exclude: tuple[Tensor, Tensor] | None = None,
):
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    With q, k, n normalised: loss_i = logsumexp(q_i . [k_i, n_1, n_2, ...] / temperature)
    - q_i . k_i / temperature.

    query, positive: (N, D).
    negatives: None (the other rows of `positive`, one-sided), (M, D) shared by all queries, (N, M, D) row i's
        own, or a `NegativeQueue`, whose rows are used as they are. Tensors are normalised and get their
        gradient; a queue gets none and may be enqueued to before the backward pass.
    exclude: (ids of the queries (N,), ids of the negatives (M,)), integers: negatives with the query's own id,
        such as keys of the same image still in the queue, are left out. In batch the same Tensor twice.
    """
    checks.pair("positive", positive, "query", query)
    rows = _negative_rows(query, negatives)
    temperature = checks.temperature(temperature, query.device)
    checks.reduction(reduction)
    if exclude is not None:
        if rows is not None and rows.dim() == 3:
            raise ValueError("exclude: expected None with negatives of each query's own")
        exclude = pair_of_ids("exclude", exclude, positive, positive if rows is None else rows)
    if runs_reference("info_nce", query):
        return reference.info_nce(query, positive, negatives, temperature, reduction, return_stats, exclude)
    normalize = isinstance(negatives, Tensor)
    if exclude is not None:
        return _info_nce_by_ids(query, positive, rows, normalize, temperature, reduction, return_stats, exclude)
    loss, stats, *_ = torch.ops.ssl_fast.info_nce(
        query, positive, rows, normalize, *split(temperature), checks.REDUCTIONS.index(reduction), return_stats
    )
    return (loss, ContrastiveStats(*stats.unbind())) if return_stats else loss


def _info_nce_by_ids(query, positive, rows, normalize, temperature, reduction, return_stats, ids):
    query, positive = as_computed(query, positive)
    if rows is None:
        rows, normalize = positive, True
    elif not normalize:
        # Autograd keeps them, and MoCo enqueues before the backward pass.
        rows, ids = rows.clone(), (ids[0], ids[1].clone())
    similarities = similarity.pair_similarity(query, positive)
    lse, _, ranks = similarity.similarity_lse(
        query, rows, IDS_DIFFER, temperature, ids, (True, normalize), positive=similarities if return_stats else None
    )
    loss_rows = softplus(lse - similarity.scores(similarities, temperature)).to(similarities.dtype)
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        u, v = unit_rows(query), (unit_rows if normalize else finite_rows)(rows)
        classes = similarity.dense(torch.cat(ids)).split((len(u), len(v)))
        excluded, equal = similarity.equal_pairs(u, v, *classes)
    sums, pairs = (u.sum(0), v.sum(0)), len(u) * len(v) - equal
    return loss, similarity.statistics(
        loss_rows, ranks, total(similarities) / similarities.numel(), sums, excluded, pairs
    )


def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Tensor | NegativeQueue | None = None,
    temperature: float | Tensor = 0.1,
    form: str = "out",
    reduction: str = "mean",
    return_stats: bool = False,
):
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
    if runs_reference("similarity_lse", query):
        return reference.multi_positive_info_nce(
            query, positives, negatives, temperature, form, reduction, return_stats
        )  # fmt: skip
    query, positives = as_computed(query, positives)
    count, each = positives.shape[:2]
    flat = positives.flatten(0, 1)
    of_positives = similarity.pair_similarity(query.repeat_interleave(each, 0), flat).view(count, each)
    logits = similarity.scores(of_positives, temperature)
    best = _best(of_positives.detach(), temperature) if return_stats else None
    mask, ids, normalize = ALL, (None, None), isinstance(negatives, Tensor)
    if rows is None:
        image = torch.arange(count, device=query.device)
        rows, mask, ids, normalize = flat, IDS_DIFFER, (image, image.repeat_interleave(each)), True
    elif not normalize:
        rows = rows.clone()  # autograd keeps it, and MoCo enqueues before the backward pass
    lse, _, ranks = similarity.similarity_lse(query, rows, mask, temperature, ids, (True, normalize), positive=best)
    of_all = logsumexp(logits)
    attraction = of_all - logits.mean(1) if form == "out" else math.log(each)
    loss_rows = (softplus(lse - of_all) + attraction).to(of_positives.dtype)
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        u, v = unit_rows(query), (unit_rows if normalize else finite_rows)(rows)
        in_batch = mask == IDS_DIFFER
        excluded, pairs = (total(of_positives.double()), count * each) if in_batch else (0, 0)
        sums, pairs = (u.sum(0), v.sum(0)), len(u) * len(v) - pairs
    return loss, similarity.statistics(
        loss_rows, ranks, total(of_positives) / of_positives.numel(), sums, excluded, pairs
    )


def _best(similarities: Tensor, temperature) -> Tensor:
    """The most similar of each row, by the sign of the temperature."""
    largest, smallest = similarities.amax(1), similarities.amin(1)
    return torch.where(torch.as_tensor(temperature, device=similarities.device) > 0, largest, smallest)


def moco_v3(
    query1: Tensor,
    query2: Tensor,
    key1: Tensor,
    key2: Tensor,
    temperature: float | Tensor = 1.0,
    reduction: str = "mean",
    return_stats: bool = False,
):
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
    if runs_reference("info_nce", query1):
        return reference.moco_v3(query1, query2, key1, key2, temperature, reduction, return_stats)
    first = info_nce(query1, key2, None, temperature, "none", return_stats)
    second = info_nce(query2, key1, None, temperature, "none", return_stats)
    return reference.symmetric_sum(first, second, 2 * temperature, reduction, return_stats)


def clip(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
):
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3), both directions from one pass over the tiles.

    2N losses: logsumexp_k(a_i . b_k / temperature) - a_i . b_i / temperature, then the same with a and b exchanged.

    a, b: (N, D), images and their texts. temperature: 1 / logit_scale. normalize: False takes the rows as they
        are. Statistics are of both directions.
    """
    checks.pair("b", b, "a", a)
    temperature = checks.temperature(temperature, a.device)
    checks.reduction(reduction)
    if runs_reference("similarity_lse", a):
        return reference.clip(a, b, temperature, normalize, reduction, return_stats)
    a, b = as_computed(a, b)
    positive = similarity.pair_similarity(a, b, normalize, normalize)
    rows, columns, ranks = similarity.similarity_lse(
        a, b, NOT_SELF, temperature, normalize=(normalize, normalize), columns=True,
        positive=positive if return_stats else None,
    )  # fmt: skip
    loss_rows = softplus(torch.cat([rows, columns]) - similarity.scores(positive, temperature).repeat(2))
    loss_rows = loss_rows.to(positive.dtype)
    return _of_pairs(a, b, normalize, positive, loss_rows, loss_rows, ranks, reduction)


def siglip(
    a: Tensor,
    b: Tensor,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
):
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k softplus(-z_ik (a_i . b_k / temperature + bias)), z_ik = 1 for k = i, else -1.

    a, b: (N, D), images and their texts. bias: a number or a 0-D tensor, which gets its gradient.
    normalize: False takes the rows as they are. The rows' losses: (N,); statistics are of both directions.
    """
    checks.pair("b", b, "a", a)
    temperature = checks.temperature(temperature, a.device)
    checks.scalar("bias", bias, a.device)
    checks.reduction(reduction)
    if runs_reference("similarity_softplus", a):
        return reference.siglip(a, b, temperature, bias, normalize, reduction, return_stats)
    a, b = as_computed(a, b)
    positive = similarity.pair_similarity(a, b, normalize, normalize)
    sums, ranks = similarity.similarity_softplus(
        a, b, normalize, temperature, bias, positive if return_stats else None
    )  # fmt: skip
    loss_rows = sums + softplus(-(positive / temperature + bias))
    return _of_pairs(a, b, normalize, positive, loss_rows, loss_rows.repeat(2), ranks, reduction)


def _of_pairs(a, b, normalize, positive, loss_rows, anchors, ranks, reduction):
    """The reduced loss and, where ranks were counted, the statistics of both directions of N pairs."""
    loss = reduce(loss_rows, reduction)
    if not len(ranks):
        return loss
    with torch.no_grad():
        prepared = unit_rows if normalize else finite_rows
        sums = prepared(a).sum(0), prepared(b).sum(0)
        excluded, pairs = total(positive.double()), len(a) * (len(a) - 1)
    return loss, similarity.statistics(anchors, ranks, total(positive) / positive.numel(), sums, excluded, pairs)


def _negative_rows(query: Tensor, negatives, dims: tuple[int, ...] = (2, 3)) -> Tensor | None:
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
