"""InfoNCE (ssl_fast.reference.info_nce) on the GPU: one walk of the queries over the keys.

With P_ij the softmax of query i over its positive k_i and its negatives n_j, and V_i = sum_j P_ij n_j, kept from the
walk as `key_means`:
    dq_i = s g_i (V_i - r_i k_i),  dk_i = -s g_i r_i q_i,  dn_j = s sum_i g_i P_ij q_i,
where r_i = 1 - P_i+ is summed from the negatives, not subtracted. In batch the negatives are the other positives, and
dk gets dn besides. Paired negatives, of which each query has its own, are in `info_nce_paired.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import info_nce_paired
from .engine import input_gradients, loss_rows
from .engine.constants import ALL, NOT_SELF, ONLINE, SHARE
from .engine.mask import Mask
from .engine.online_softmax import PartialSums, new_partial_sums, online_softmax, split
from .engine.precision import accumulator_dtype
from .engine.scale import Scale, scale_of
from .engine.tile import pair_dots
from .engine.unit_rows import UnitRows, prepare, prepare_keys, product_dtype
from .engine.weighted_rows import SavedSums, weighted_rows
from .tuning import table


def _check_rows(query: Tensor, positive: Tensor, negatives: Tensor | None) -> None:
    if query.dim() != 2 or query.shape != positive.shape or not query.numel():
        raise ValueError(
            "positive: expected the shape (N, D) of query, not empty, "
            f"got {tuple(query.shape)} and {tuple(positive.shape)}"
        )
    if negatives is None:
        return
    fits = negatives.dim() == 2 or (negatives.dim() == 3 and negatives.shape[0] == query.shape[0])
    if not fits or negatives.shape[-1] != query.shape[1] or not negatives.numel():
        raise ValueError(f"negatives: expected (M, D) or (N, M, D) for query {tuple(query.shape)}")


def _are_paired(negatives: Tensor | None) -> bool:
    """Whether each query has negatives of its own, (N, M, D)."""
    return negatives is not None and negatives.dim() == 3


def _product_dtype(query: Tensor, negatives: Tensor | None) -> torch.dtype:
    return query.dtype if negatives is None or _are_paired(negatives) else product_dtype(query, negatives)


def _mask(negatives: Tensor | None) -> Mask:
    """All negatives count; in batch they are the positives, and a query's own does not count."""
    return Mask((NOT_SELF if negatives is None else ALL).value)


class _Walk(NamedTuple):
    """What the walk over shared negatives, or over the positives of the batch, found."""

    similarities: Tensor  # (N,): of the positives
    partial: PartialSums
    keys: UnitRows


def _walk(
    q: UnitRows,
    k: UnitRows,
    query: Tensor,
    negatives: Tensor | None,
    normalize_negatives: bool,
    scale: Scale,
    with_ranks: bool,
    with_weighted: bool,
) -> _Walk:
    """q, k: the rows of the queries, whose tensor is `query`, and of the positives."""
    tile = q.tile("online_softmax")
    if with_weighted:
        tile = tile._replace(depth=q.width)
    similarities = pair_dots(q, k, tile)
    keys, may_hold_inf = k, False
    if negatives is not None:
        keys, may_hold_inf = prepare_keys(negatives, normalize_negatives, q.values.dtype, query)
    share = split(q, keys, tile)
    partial = new_partial_sums(share.pieces, share.blocks * share.pieces, q, with_ranks, with_weighted)
    online_softmax(q, keys, scale, similarities, partial, tile, _mask(negatives), may_hold_inf)
    return _Walk(similarities, partial, keys)


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    normalize_negatives: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    reduction: int,
    return_stats: bool,
    query_gradient: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::info_nce of query and positive (N, D): (loss, stats, sums, key_means).

    negatives: (M, D), (N, M, D), or None for those in the batch. loss: (N,) or 0-D. stats: (4,), or (0,) unless asked
    for. sums: (3, N), see constants.SUMS_ROWS. key_means: (N, D) where the query's gradient is asked for, else (0, D).
    """
    _check_rows(query, positive, negatives)
    loss_rows.check_reduction(reduction)
    count, dim = query.shape
    with torch.cuda.device_of(query):
        scale = scale_of(scale_number, scale_tensor, query)
        paired, wide_dtype = _are_paired(negatives), accumulator_dtype(query.dtype)
        dtype = _product_dtype(query, negatives)
        q, k = (prepare([x], dtype, query, on_tensor_cores=not paired) for x in (query, positive))
        key_means = torch.empty((count if query_gradient else 0, dim), dtype=wide_dtype, device=query.device)
        # Wider rows do not fit a program's registers: their means are summed afterwards.
        weighted = query_gradient and (paired or q.width <= table.FUSED_WIDTH)
        if paired:
            similarities = torch.empty(count, dtype=wide_dtype, device=query.device)
            partial = info_nce_paired.walk(
                q, positive, negatives, normalize_negatives, scale, similarities, return_stats, weighted
            )
        else:
            similarities, partial, keys = _walk(
                q, k, query, negatives, normalize_negatives, scale, return_stats, weighted
            )
        slots = 0, partial.sums.shape[0]
        candidates = count - 1 if negatives is None else negatives.shape[-2]
        means = key_means if weighted else None
        loss, stats, sums = loss_rows.losses(
            partial, similarities, scale, slots, ONLINE.value, reduction, candidates, means
        )
        if query_gradient and not weighted:
            means = weighted_rows(q, keys, scale, SavedSums(sums), None, _mask(negatives))
            key_means = means[0, :, :dim].contiguous()
        return loss, stats, sums, key_means


class _Backward(NamedTuple):
    """What the gradients of query, positive and negatives have in common."""

    scale: Scale
    q: UnitRows
    k: UnitRows
    saved: SavedSums
    gradient: Tensor  # (N,) or 0-D
    divisor: int

    def rows(self, x: Tensor, of: UnitRows, sums: Tensor | None, **options) -> Tensor:
        """The gradient of x (n, D), whose rows are `of`, from weighted sums: see input_gradients.row_gradients."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        input_gradients.row_gradients(out, of, self.scale, sums, self.gradient, self.divisor, **options)
        return out

    def positive(self, positive: Tensor, in_batch: bool, negatives_gradient: bool) -> Tensor:
        """dk, and in batch dn as well, whose rows are the same."""
        if in_batch and not negatives_gradient:
            return positive.new_zeros(positive.shape)
        sums, unit = None, None
        if in_batch:
            sums, unit = weighted_rows(self.k, self.q, self.scale, None, self.saved, _mask(None)), self.saved.unit
        return self.rows(positive, self.k, sums, unit=unit, partners=self.q, shares=self.saved.sums[SHARE.value])

    def negatives(self, query: Tensor, negatives: Tensor, normalize: bool) -> Tensor:
        """dn of negatives (M, D) or (N, M, D)."""
        if _are_paired(negatives):
            return info_nce_paired.gradient_of_negatives(
                self.q, negatives, normalize, self.scale, self.saved, self.gradient, self.divisor
            )
        n = prepare([negatives], self.q.values.dtype, query, normalize)
        sums = weighted_rows(n, self.q, self.scale, None, self.saved, _mask(negatives))
        return self.rows(negatives, n, sums, unit=self.saved.unit)


def info_nce_backward(
    gradient: Tensor,
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    in_batch: bool,
    normalize_negatives: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    reduction: int,
    sums: Tensor,
    key_means: Tensor,
    negatives_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::info_nce_backward: the gradients of query, positive, negatives and scale.

    gradient: of the loss, (N,) or 0-D. sums (3, N) and key_means (N, D) or (0, D): as the forward pass returned them;
    without key_means the query gets zeros. negatives_gradient: whether that of the negatives is asked for, and in batch
    that of the positives; the negatives' is (0,) if not.
    """
    _check_rows(query, positive, negatives)
    if (in_batch and negatives is not None) or (not in_batch and negatives is None and negatives_gradient):
        raise ValueError("negatives: expected none in batch, and a tensor where their gradient is asked for")
    count, dim = query.shape
    with_query = key_means.shape[0] > 0
    loss_rows.check_sums(sums, count, query)
    loss_rows.check_saved("key_means", key_means, (count if with_query else 0, dim), query)
    gradient, divisor, unit = loss_rows.upstream(gradient, reduction, count)
    with torch.cuda.device_of(query):
        scale = scale_of(scale_number, scale_tensor, query)
        dtype, on_tensor_cores = _product_dtype(query, negatives), not _are_paired(negatives)
        q, k = (prepare([x], dtype, query, on_tensor_cores=on_tensor_cores) for x in (query, positive))
        common = _Backward(scale, q, k, SavedSums(sums, None if unit is None else gradient, unit), gradient, divisor)
        projections = None
        if scale_tensor is not None:
            projections = torch.zeros(count, dtype=torch.float64, device=query.device)
        if with_query:
            shares = sums[SHARE.value]
            dq = common.rows(query, q, key_means, partners=k, shares=shares, projections=projections)
        else:
            dq = query.new_zeros(query.shape)
        dk = common.positive(positive, in_batch, negatives_gradient)
        dn = query.new_empty(0)
        if negatives is not None and negatives_gradient:
            dn = common.negatives(query, negatives, normalize_negatives)
        if scale_tensor is not None:
            ds = input_gradients.scale_gradient(projections, scale, 1.0, scale_tensor)
        else:
            ds = torch.empty((), dtype=accumulator_dtype(query.dtype), device=query.device)
        return dq, dk, dn, ds
