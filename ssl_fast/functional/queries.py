"""Losses of queries (N, D) against keys: in the batch, of a tensor, or of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.classes import dense
from ..formulas.loss_parts import symmetric_sum
from ..formulas.rows import rows_of
from ..formulas.sums import total
from ..memory.queue import NegativeQueue
from ..operators import calls
from ..operators.codes import ALL, IDS_DIFFER, NOT_SELF
from . import _statistics
from ._dispatch import Request, as_computed, runs_reference
from .similarity import pair_of_ids

if TYPE_CHECKING:
    from ..annotations import Group, Ids, Loss, LossAndStats, Options, Scalar, Temperature, Unpack

    Negatives = Tensor | NegativeQueue | None


@overload
def info_nce(
    query: Tensor, positive: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: Literal[False] = ..., exclude: tuple[Tensor, Tensor] | None = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def info_nce(
    query: Tensor, positive: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: Literal[True], exclude: tuple[Tensor, Tensor] | None = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def info_nce(
    query: Tensor, positive: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: bool, exclude: tuple[Tensor, Tensor] | None = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Negatives = None,
    temperature: Any = 0.1,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    exclude: tuple[Tensor, Tensor] | None = None,
) -> Loss:
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    With q, k, n normalised: loss_i = logsumexp(q_i . [k_i, n_1, n_2, ...] / temperature)
    - q_i . k_i / temperature.

    Args:
        query: (N, D) embeddings.
        positive: (N, D) embeddings, row i the key of query i.
        negatives: None, the other rows of `positive` (one direction; `clip` has both); (M, D), shared by all queries;
            (N, M, D), row i's own; or a `NegativeQueue`, whose rows are taken as they are. A tensor gets its gradient;
            a queue gets none and may be enqueued to before the backward pass.
        temperature, reduction, weights, return_stats: as for `nt_xent`.
        normalize: whether query, positive and negatives are normalised here; False takes all as they are, and where
            negatives are (N, M, D) computes in plain PyTorch.
        group: as for `nt_xent`, for negatives in the batch; other negatives are the rank's own, as a queue that all
            ranks fill alike.
        exclude: (ids of the queries (N,), ids of the negatives (M,)), integers: negatives with the query's own id,
            such as keys of the same image still in the queue, are left out. In batch the same tensor twice.

    Returns:
        The loss, () or for "none" (N,). With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> queue = NegativeQueue(size=4096, dim=128)
        >>> query, key = torch.randn(2, 256, 128)
        >>> loss = functional.info_nce(query, key, queue, temperature=0.2)
    """
    return info_nce_of_scale(
        query, positive, negatives, None, temperature, reduction=reduction, normalize=normalize, weights=weights,
        return_stats=return_stats, group=group, exclude=exclude,
    )  # fmt: skip


def info_nce_of_scale(
    query: Tensor,
    positive: Tensor,
    negatives: Negatives,
    logit_scale: Scalar | None,
    temperature: Any = None,
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    exclude: tuple[Tensor, Tensor] | None = None,
) -> Any:  # a Loss
    """`info_nce` for callers who have 1 / temperature. The temperature is only read where logit_scale is None."""
    checks.pair("positive", positive, "query", query)
    rows = _negative_rows(query, negatives)
    if exclude is not None:
        if rows is not None and rows.dim() == 3:
            raise ValueError("exclude: expected None with negatives of each query's own")
        exclude = pair_of_ids("exclude", exclude, positive, positive if rows is None else rows)
    group = group if rows is None else None
    request = Request(query, temperature, reduction, normalize, weights, return_stats, group, logit_scale=logit_scale)
    in_plain_pytorch = rows is not None and rows.dim() == 3 and not normalize
    if runs_reference("info_nce", query) or in_plain_pytorch:
        return _info_nce_reference(query, positive, negatives, exclude, request)
    normalize_negatives = normalize and not isinstance(negatives, NegativeQueue)
    if exclude is not None or not normalize or not request.batch.alone:
        return _info_nce_composed(query, positive, rows, normalize_negatives, exclude, request)
    loss, stats = calls.info_nce(
        query, positive, rows, normalize_negatives, request.scale, request.operator_reduction, return_stats
    )
    return request.result(request.finished(loss), stats)


def _info_nce_reference(query: Tensor, positive: Tensor, negatives: Negatives, ids: Any, request: Request) -> Loss:
    tensors = {"query": query, "positive": positive}
    if request.batch.alone or ids is None:
        options = {"negatives": negatives, "temperature": request.temperature, "exclude": ids}
        return request.of_reference(reference.info_nce, tensors, options)

    def formula(query: Tensor, positive: Tensor, ids: Tensor, **options: Any) -> Any:
        return reference.info_nce(query, positive, exclude=(ids, ids), **options)

    # In batch: the ids belong to the rows, and are gathered from the ranks like them.
    return request.of_reference(formula, {**tensors, "ids": ids[0]}, {"temperature": request.temperature})


def _info_nce_composed(
    query: Tensor, positive: Tensor, rows: Tensor | None, normalize_rows: bool, ids: Any, request: Request
) -> Loss:
    """InfoNCE from the log-sum-exp over the negatives, where the operator of that name has no such option."""
    in_queue = rows is not None and not normalize_rows
    query, positive = as_computed(query, positive)
    mask = IDS_DIFFER if ids is not None else NOT_SELF if rows is None else ALL
    if rows is None:
        rows = positive
    elif in_queue:
        # Clones, because autograd keeps these rows and MoCo enqueues before the backward pass.
        rows, ids = rows.clone(), None if ids is None else (ids[0], ids[1].clone())
    positive_similarity = calls.pair_similarity(query, positive, request.normalize, request.normalize)  # (N,)
    counted = positive_similarity if request.return_stats else None
    normalize = (request.normalize, normalize_rows)
    lse, above = request.batch.lse(query, rows, mask, request.scale, ids or (None, None), normalize, counted)
    loss = request.positive_loss(lse, positive_similarity)
    if counted is None:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, counted, request.scale, "none")
        u, v = rows_of(query, request.normalize), rows_of(request.batch.gather(rows), normalize_rows)
        excluded, left_out = _left_out(mask, u, v, counted, ids, request)
        pairs = u.shape[0] * v.shape[0] - left_out
        positive_mean = total(counted) / counted.numel()
        stats = _statistics.statistics(loss_rows, above, positive_mean, (u.sum(0), v.sum(0)), excluded, pairs)
        return loss, request.batch.mean_stats(stats, torch.stack([pairs.new_full((), u.shape[0]), pairs]))


def _left_out(
    mask: int, u: Tensor, v: Tensor, positive_similarity: Tensor, ids: Any, request: Request
) -> tuple[Tensor, Tensor]:
    """(sum of the similarities, number) of the pairs of rows u and v that the mask leaves out."""
    if mask == IDS_DIFFER:
        classes = dense(torch.cat([ids[0], request.batch.gather(ids[1])])).split((u.shape[0], v.shape[0]))
        return _statistics.equal_pairs(u, v, *classes)
    number = torch.full((), u.shape[0] if mask == NOT_SELF else 0, device=u.device)
    return total(positive_similarity.double()) * (mask == NOT_SELF), number


@overload
def multi_positive_info_nce(
    query: Tensor, positives: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: Literal[False] = ..., form: str = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def multi_positive_info_nce(
    query: Tensor, positives: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: Literal[True], form: str = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def multi_positive_info_nce(
    query: Tensor, positives: Tensor, negatives: Negatives = ..., temperature: Temperature = ..., *,
    return_stats: bool, form: str = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Negatives = None,
    temperature: Any = 0.1,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    form: str = "out",
) -> Loss:
    """InfoNCE with several positives a query, in SupCon's two forms (Khosla et al. 2020, eq. 2 and 3).

    With Z_i the sum of exp(q_i . x / temperature) over the query's positives and its negatives, "out" is the mean
    over its positives of log Z_i - q_i . k_ip / temperature; "in" takes the log of the mean of their exponentials.

    Args:
        query: (N, D) embeddings.
        positives: (N, P, D) embeddings, the P keys of query i in row i; they get their gradient.
        negatives: None, the other queries' positives; (M, D), or a `NegativeQueue`, as for `info_nce`.
        temperature, reduction, normalize, weights, group: as for `info_nce`.
        return_stats: whether `ContrastiveStats` are returned too; top-1 is whether a positive is the most similar.
        form: "out" or "in".

    Returns:
        The loss, () or for "none" (N,). With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = functional.multi_positive_info_nce(torch.randn(256, 128), torch.randn(256, 4, 128), form="in")
    """
    checks.embeddings("query", query)
    checks.embeddings("positives", positives, (3,))
    if positives.shape[::2] != query.shape:
        raise ValueError(
            f"positives: expected shape ({query.shape[0]}, positives, {query.shape[1]}), got {tuple(positives.shape)}"
        )
    checks.same_device("positives", positives, "query", query)
    rows = _negative_rows(query, negatives, (2,))
    checks.choice("form", form, checks.FORMS)
    group = group if rows is None else None
    request = Request(query, temperature, reduction, normalize, weights, return_stats, group)
    if runs_reference("similarity_lse", query):
        tensors = {"query": query, "positives": positives}
        options = {"negatives": negatives, "temperature": request.temperature, "form": form}
        return request.of_reference(reference.multi_positive_info_nce, tensors, options)
    normalize_negatives = normalize and not isinstance(negatives, NegativeQueue)
    return _several_positives(query, positives, rows, normalize_negatives, form, request)


def _several_positives(
    query: Tensor, positives: Tensor, rows: Tensor | None, normalize_rows: bool, form: str, request: Request
) -> Loss:
    batch, scale = request.batch, request.scale
    query, positives = as_computed(query, positives)
    count, each = positives.shape[:2]
    flat = positives.flatten(0, 1)  # (N P, D)
    of_positives = calls.pair_similarity(
        query.repeat_interleave(each, 0), flat, request.normalize, request.normalize
    ).view(count, each)  # (N, P)
    in_batch, mask = rows is None, ALL
    ids: Ids = (None, None)
    if rows is None:
        image = batch.images(query.device)
        rows, mask, ids = flat, IDS_DIFFER, (image, image.repeat_interleave(each))
    elif not normalize_rows:
        rows = rows.clone()  # autograd keeps these rows, and MoCo enqueues before the backward pass
    best = _best(of_positives.detach(), scale) if request.return_stats else None
    lse, above = batch.lse(query, rows, mask, scale, ids, (request.normalize, normalize_rows), best)
    mean_in_log = form == "in"
    loss = request.positive_loss(lse, of_positives, mean_in_log=mean_in_log)
    if not request.return_stats:
        return loss
    with torch.no_grad():
        loss_rows = calls.positive_loss(lse, of_positives, scale, "none", mean_in_log=mean_in_log)
        u, v = rows_of(query, request.normalize).sum(0), rows_of(rows, normalize_rows).sum(0)
        excluded, left_out = (total(of_positives.double()), count * each) if in_batch else (0, 0)
        pairs = count * (batch.total * each if in_batch else rows.shape[0]) - left_out
        positive_mean = total(of_positives) / of_positives.numel()
        stats = _statistics.statistics(loss_rows, above, positive_mean, (u, batch.sum(v)), excluded, pairs)
    return loss, batch.mean_stats(stats)


def _best(similarities: Tensor, scale: Scalar) -> Tensor:
    """(N,) the most similar of each row of (N, P), by the sign of the scale."""
    largest, smallest = similarities.amax(1), similarities.amin(1)
    if isinstance(scale, Tensor):
        return torch.where(scale > 0, largest, smallest)
    return largest if scale > 0 else smallest


@overload
def moco_v3(
    query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, temperature: Temperature = ..., *,
    return_stats: Literal[False] = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def moco_v3(
    query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, temperature: Temperature = ..., *,
    return_stats: Literal[True], **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def moco_v3(
    query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor, temperature: Temperature = ..., *,
    return_stats: bool, **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def moco_v3(
    query1: Tensor,
    query2: Tensor,
    key1: Tensor,
    key2: Tensor,
    temperature: Any = 1.0,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """MoCo v3's symmetric loss (Chen et al. 2021, algorithm 1): 2 temperature (ctr(query1, key2) + ctr(query2, key1)).

    ctr is in-batch InfoNCE: each query against all keys of the other view.

    Args:
        query1, query2: (N, D) predictions of the two views.
        key1, key2: (N, D) momentum embeddings of the two views, which get a gradient only where they require one.
        temperature, reduction, normalize, weights, group: as for `nt_xent`.
        return_stats: whether `ContrastiveStats` are returned too, the mean of both directions.

    Returns:
        The loss, () or for "none" (N,), one an image. With return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = functional.moco_v3(*torch.randn(4, 256, 128), temperature=0.2)
    """
    checks.pair("key2", key2, "query1", query1)
    checks.pair("query2", query2, "query1", query1)
    checks.pair("key1", key1, "query1", query1)
    request = Request(query1, temperature, reduction, normalize, weights, return_stats, group)
    options: dict[str, Any] = {"reduction": "none", "normalize": normalize, "return_stats": return_stats}
    first = info_nce_of_scale(query1, key2, None, request.scale, group=group, **options)
    second = info_nce_of_scale(query2, key1, None, request.scale, group=group, **options)
    loss_rows, stats = symmetric_sum(first, second, 2 * request.temperature)
    return request.result(request.reduce(loss_rows), stats)


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
