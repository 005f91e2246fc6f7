"""InfoNCE (ssl_fast.reference.info_nce) on the GPU: one walk of the queries over the keys.

With P_ij the softmax of query i over its positive k_i and its negatives n_j, and V_i = sum_j P_ij n_j
kept from the walk:
    dq_i = s g_i (V_i - r_i k_i),  dk_i = -s g_i r_i q_i,  dn_j = s sum_i g_i P_ij q_i,
where r_i = 1 - P_i+ is summed from the negatives, not subtracted. In batch the negatives are the other
positives, and dk gets dn besides. Paired negatives, each query's own, are in `info_nce_paired.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import info_nce_paired
from .engine import input_gradients, loss_rows
from .engine.constants import ALL, NOT_SELF, ONLINE
from .engine.mask import Mask
from .engine.online_softmax import new_partial_sums, online_softmax, split
from .engine.precision import wide
from .engine.scale import Scale, scale_of
from .engine.tile import pair_dots
from .engine.unit_rows import UnitRows, keys_of, prepare, product_dtype
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


def _product_dtype(query: Tensor, negatives: Tensor | None) -> torch.dtype:
    return query.dtype if negatives is None or negatives.dim() == 3 else product_dtype(query, negatives)


def _keys(
    positive: UnitRows, negatives: Tensor | None, normalize: bool, dtype: torch.dtype, query: Tensor
) -> tuple[UnitRows, bool]:
    """The negatives' rows, and whether they are read as they lie and may hold Inf."""
    return (positive, False) if negatives is None else keys_of(negatives, normalize, dtype, query)


def _key_means(query: UnitRows, keys: UnitRows, scale: Scale, log_sums: Tensor, mask: Mask) -> Tensor:
    """V_i of rows too wide to be summed during the walk: a second walk, with the sums known."""
    return weighted_rows(query, keys, scale, SavedSums(log_sums), None, mask)[0, :, : query.dim].contiguous()


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    normalize_negatives: bool,
    temperature: float,
    temperature_tensor: Tensor | None,
    reduction: int,
    return_stats: bool,
    query_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::info_nce (csrc/ops.cpp). sums: see constants.SUMS_ROWS."""
    _check_rows(query, positive, negatives)
    loss_rows.check_reduction(reduction)
    count, dim = query.shape
    with torch.cuda.device_of(query):
        scale = scale_of(temperature, temperature_tensor, query)
        dtype = _product_dtype(query, negatives)
        paired, in_batch = negatives is not None and negatives.dim() == 3, negatives is None
        q, k = (prepare([x], dtype, query, on_tensor_cores=not paired) for x in (query, positive))
        key_means = torch.empty((count if query_gradient else 0, dim), dtype=wide(query.dtype), device=query.device)
        mask = Mask(NOT_SELF.value if in_batch else ALL.value)
        fused = paired or q.width <= table.FUSED_WIDTH
        weighted = query_gradient and fused
        if paired:
            similarities = torch.empty(count, dtype=wide(query.dtype), device=query.device)
            partial = info_nce_paired.walk(
                q, positive, negatives, normalize_negatives, scale, similarities, return_stats, weighted
            )  # fmt: skip
        else:
            tile = q.tile("online_softmax")
            if weighted:
                tile = tile._replace(depth=q.width)
            similarities = pair_dots(q, k, tile)
            keys, poison = _keys(k, negatives, normalize_negatives, dtype, query)
            share = split(q, keys, tile)
            partial = new_partial_sums(share.pieces, share.blocks * share.pieces, q, return_stats, weighted)
            online_softmax(q, keys, scale, similarities, partial, tile, mask, poison)
        slots = 0, partial.sums.shape[0]
        candidates = count - 1 if in_batch else negatives.shape[-2]
        loss, stats, sums = loss_rows.losses(
            partial, similarities, scale, slots, ONLINE.value, reduction, candidates,
            key_means if weighted else None,
        )  # fmt: skip
        if query_gradient and not fused:
            key_means = _key_means(q, keys, scale, sums, mask)
        return loss, stats, sums, key_means


def info_nce_backward(
    gradient: Tensor,
    query: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    in_batch: bool,
    normalize_negatives: bool,
    temperature: float,
    temperature_tensor: Tensor | None,
    reduction: int,
    sums: Tensor,
    key_means: Tensor,
    negatives_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::info_nce_backward (csrc/ops.cpp)."""
    _check_rows(query, positive, negatives)
    if negatives is not None if in_batch else negatives is None and negatives_gradient:
        raise ValueError("negatives: expected none in batch, and a tensor where their gradient is asked for")
    count, dim = query.shape
    with_query = key_means.shape[0] > 0
    loss_rows.check_sums(sums, count, query)
    loss_rows.check_saved("key_means", key_means, (count if with_query else 0, dim), query)
    gradient, divisor, unit = loss_rows.upstream(gradient, reduction, count)
    with torch.cuda.device_of(query):
        scale = scale_of(temperature, temperature_tensor, query)
        dtype = _product_dtype(query, negatives)
        paired = negatives is not None and negatives.dim() == 3
        q, k = (prepare([x], dtype, query, on_tensor_cores=not paired) for x in (query, positive))
        softmax = SavedSums(sums, None if unit is None else gradient, unit)

        def rows_of(x: Tensor, of: UnitRows, total: Tensor | None, **options) -> Tensor:
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            input_gradients.row_gradients(out, of, scale, total, gradient, divisor, **options)
            return out

        wants_temperature = temperature_tensor is not None
        along = torch.zeros(count, dtype=torch.float64, device=query.device) if wants_temperature else None
        dq = rows_of(query, q, key_means, partners=k, shares=sums[1], along=along) if with_query else query.new_zeros(
            query.shape
        )  # fmt: skip
        dn = query.new_empty(0)
        if in_batch and not negatives_gradient:
            dk = positive.new_zeros(positive.shape)
        elif in_batch:
            weighted = weighted_rows(k, q, scale, None, softmax, Mask(NOT_SELF.value))
            dk = rows_of(positive, k, weighted, unit=unit, partners=q, shares=sums[1])
        else:
            dk = rows_of(positive, k, None, partners=q, shares=sums[1])
        if not in_batch and negatives_gradient:
            if paired:
                dn = info_nce_paired.gradient_of_negatives(
                    q, negatives, normalize_negatives, scale, softmax, gradient, divisor
                )  # fmt: skip
            else:
                n = prepare([negatives], dtype, query, normalize_negatives)
                dn = rows_of(negatives, n, weighted_rows(n, q, scale, None, softmax, Mask(ALL.value)), unit=unit)
        if wants_temperature:
            dt = input_gradients.temperature_gradient(along, scale, 1.0, temperature_tensor)
        else:
            dt = torch.empty((), dtype=wide(query.dtype), device=query.device)
        return dq, dk, dn, dt
