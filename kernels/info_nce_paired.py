"""InfoNCE where each query has negatives of its own, (N, M, D). One program reads each once, so memory is the limit.

The formulas are those of `info_nce.py`. Products are sums along rows in float32, or float64, and no matrix products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .engine.constants import LEAST_CLAMPED_INVERSE, LN2, LOG_SUM, REST
from .engine.online_softmax import PartialSums, new_partial_sums
from .engine.precision import gradient_unit, rounded_gradient
from .engine.scale import Scale, log2_scale
from .engine.tile import exp2_of
from .engine.unit_rows import UnitRows, inverse_norm, largest_power
from .engine.weighted_rows import SavedSums
from .tuning import table


@triton.jit
def _load_query(values, i, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Row i of values (queries, WIDTH) in float32 or float64, (BLOCK_D,)."""
    column = tl.arange(0, BLOCK_D)
    x = tl.load(values + i.to(tl.int64) * WIDTH + column, mask=column < WIDTH, other=0.0)
    return x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)


@triton.jit
def _load_keys(
    x,  # (count, dim), any strides
    row,  # (BLOCK,)
    count, dim, row_stride, dim_stride, accumulator: tl.constexpr, NORMALIZE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(the keys `row` times powers of two, factors, powers): (BLOCK, BLOCK_D), (BLOCK,), (BLOCK,).

    Times its factor a key is a unit row, or with NORMALIZE false the key as given.
    """
    column = tl.arange(0, BLOCK_D)
    place = x + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * dim_stride
    v = tl.load(place, mask=(row < count)[:, None] & (column < dim)[None, :], other=0.0)
    v = v.to(tl.float64 if v.dtype == tl.float64 else accumulator)
    power = largest_power(tl.max(tl.abs(v), 1))
    v = (v * power[:, None]).to(accumulator)
    power = power.to(tl.float64)
    squares = tl.sum(v * v, 1)
    if NORMALIZE:
        factor = inverse_norm(squares, power)
    else:
        factor = tl.where(squares < float("inf"), 1.0 / power, float("nan"))
    return v, factor.to(accumulator), power


@triton.jit
def _paired_walk_kernel(
    query, query_factors,  # (queries, WIDTH), (queries,) or None
    positive, positive_row_stride, positive_dim_stride,  # (queries, dim)
    key, group_stride, row_stride, dim_stride,  # (queries, keys, dim)
    similarities,  # (queries,): gets those of the positives
    sums, maxima, ranks, totals, weighted,  # see PartialSums
    scale, scale_tensor,  # see Scale
    queries, keys, dim, length,  # a piece has `length` keys
    NORMALIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program walks with one query over one piece of its keys."""
    s = log2_scale(scale, scale_tensor)
    accumulator: tl.constexpr = maxima.dtype.element_ty
    i, piece = tl.program_id(0), tl.program_id(1)
    sign = tl.where(s < 0, -1.0, 1.0).to(accumulator)
    x = _load_query(query, i, WIDTH, BLOCK_D)
    magnitude = tl.abs(s).to(accumulator)
    own = tl.full((), 1.0, accumulator)
    if query_factors is not None:
        own = tl.load(query_factors + i)
    magnitude *= own
    member = tl.arange(0, BLOCK)
    # The positive has a tile of its own and is summed in the negatives' order, so that equal rows tie exactly.
    v, factor, _ = _load_keys(
        positive + i.to(tl.int64) * positive_row_stride, member, 1, dim, positive_row_stride, positive_dim_stride,
        accumulator, True, BLOCK_D,
    )  # fmt: skip
    similarity = tl.sum(tl.where(member == 0, tl.sum(v * x[None, :], 1) * factor, 0.0), 0)
    tl.store(similarities + i, similarity * own)
    threshold = similarity * sign
    highest = tl.full((), -3.0e38, accumulator)
    sum_of_exp = tl.zeros((), tl.float64)
    above = tl.zeros((), tl.int32)
    total = tl.zeros((), tl.float64)
    weighted_sum = tl.zeros((BLOCK_D,), accumulator)
    group = key + i.to(tl.int64) * group_stride
    end = tl.minimum((piece + 1) * length, keys)
    for first in range(piece * length, end, BLOCK):
        row = first + member
        v, factor, _ = _load_keys(
            group, row, keys, dim, row_stride, dim_stride, accumulator, NORMALIZE, BLOCK_D
        )  # fmt: skip
        dots = tl.sum(v * x[None, :], 1) * factor * sign
        dots = tl.where(row < keys, dots, float("-inf"))
        if ranks is not None:
            above += tl.sum((dots > threshold).to(tl.int32), 0)
            total += tl.sum(tl.where(row < keys, dots, 0.0).to(tl.float64), 0)
        before = highest
        highest = tl.maximum(highest, tl.max(dots, 0) * magnitude)
        rescale = tl.exp2(before - highest)
        e = exp2_of(dots, magnitude, highest)
        sum_of_exp = sum_of_exp * rescale.to(tl.float64) + tl.sum(e.to(tl.float64), 0)
        if weighted is not None:
            weighted_sum = weighted_sum * rescale + tl.sum(v * (e * factor)[:, None], 0)
    place = piece.to(tl.int64) * queries + i
    tl.store(sums + place, sum_of_exp)
    tl.store(maxima + place, highest)
    if ranks is not None:
        tl.store(ranks + place, above)
        tl.store(totals + place, total * sign.to(tl.float64) * own.to(tl.float64))
    if weighted is not None:
        column = tl.arange(0, BLOCK_D)
        tl.store(weighted + place * WIDTH + column, weighted_sum, mask=column < WIDTH)


def _block(dim: int, device: torch.device) -> tuple[int, int]:
    """(rows, columns) that a program holds of rows of this dimension. It holds whole rows."""
    columns = triton.next_power_of_2(max(dim, 16))
    return max(1, min(64, table.elements(device) // 2 // columns)), columns


def walk(
    query: UnitRows,
    positive: Tensor,
    negatives: Tensor,
    normalize: bool,
    scale: Scale,
    similarities: Tensor,
    with_ranks: bool,
    with_weighted: bool,
) -> PartialSums:
    """The sums of every query over its own negatives (N, M, D). similarities (N,): gets the positives' (N, D)."""
    count, keys, dim = negatives.shape
    block, block_d = _block(max(dim, query.width), query.values.device)
    pieces, length = table.pieces(query.values.device, count, keys, block)
    partial = new_partial_sums(pieces, pieces * count, query, with_ranks, with_weighted)
    _paired_walk_kernel[(count, pieces)](
        query.values,
        query.factors,
        positive,
        *positive.stride(),
        negatives,
        *negatives.stride(),
        similarities,
        *partial,
        *scale.arguments,
        count,
        keys,
        dim,
        length,
        NORMALIZE=normalize,
        WIDTH=query.width,
        BLOCK=block,
        BLOCK_D=block_d,
        **table.UNFUSED,  # with fused products equal rows would not tie
    )
    return partial


@triton.jit
def _paired_gradient_kernel(
    query, query_factors,  # (queries, WIDTH), (queries,) or None
    key, group_stride, row_stride, dim_stride,  # (queries, keys, dim)
    sums,  # (3, queries), see SUMS_ROWS
    gradient, unit,  # (queries,) or a number; a number or None
    out,  # (queries, keys, dim)
    scale, scale_tensor,  # see Scale
    queries, keys, dim, divisor, gradient_stride,
    NORMALIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program computes the gradients of BLOCK keys of one query."""
    s = log2_scale(scale, scale_tensor)
    # All programs lie along one axis: the others may have 65535 only.
    blocks = tl.cdiv(keys, BLOCK)
    i = tl.program_id(0) // blocks
    x = _load_query(query, i, WIDTH, BLOCK_D)
    accumulator: tl.constexpr = x.dtype
    own = tl.full((), 1.0, accumulator)
    if query_factors is not None:
        own = tl.load(query_factors + i)
    g = tl.load(gradient + i * gradient_stride).to(tl.float64) / divisor
    # The gradient is multiplied by P first: that product is in range, while g * s need not be.
    pull = (g / gradient_unit(unit)).to(accumulator) * tl.exp2(-tl.load(sums + queries * REST + i))
    slope = s * LN2 * gradient_unit(unit)
    row = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    v, factor, power = _load_keys(
        key + i.to(tl.int64) * group_stride, row, keys, dim, row_stride, dim_stride, accumulator, NORMALIZE, BLOCK_D
    )  # fmt: skip
    dots = tl.sum(v * x[None, :], 1) * factor
    p = exp2_of(dots, s.to(accumulator) * own, tl.load(sums + queries * LOG_SUM + i)) * pull
    d = (p * slope.to(accumulator))[:, None] * (x * own)[None, :]
    inverse = factor.to(tl.float64) * power
    if NORMALIZE:
        n = v * factor[:, None]
        # A key of norm below EPS was divided by EPS and not by its norm: its gradient is d / EPS in every direction.
        projection = tl.where(inverse < LEAST_CLAMPED_INVERSE, tl.sum(n * d, 1), 0.0)
        d = (d - n * projection[:, None]) * inverse.to(accumulator)[:, None]
    column = tl.arange(0, BLOCK_D)
    place = out + (i.to(tl.int64) * keys + row)[:, None] * dim + column[None, :]
    mask = (row < keys)[:, None] & (column < dim)[None, :]
    tl.store(place, rounded_gradient(d, inverse, out.dtype.element_ty), mask=mask)


def gradient_of_negatives(
    query: UnitRows,
    negatives: Tensor,
    normalize: bool,
    scale: Scale,
    saved: SavedSums,
    gradient: Tensor,
    divisor: int,
) -> Tensor:
    """dn (N, M, D) for loss rows whose gradients are gradient / divisor."""
    count, keys, dim = negatives.shape
    block, block_d = _block(max(dim, query.width), query.values.device)
    out = torch.empty(negatives.shape, dtype=negatives.dtype, device=negatives.device)
    _paired_gradient_kernel[(count * triton.cdiv(keys, block),)](
        query.values,
        query.factors,
        negatives,
        *negatives.stride(),
        saved.sums,
        gradient,
        saved.unit,
        out,
        *scale.arguments,
        count,
        keys,
        dim,
        divisor,
        0 if gradient.dim() == 0 else 1,
        NORMALIZE=normalize,
        WIDTH=query.width,
        BLOCK=block,
        BLOCK_D=block_d,
        **table.UNFUSED,  # with fused products equal rows would not tie
    )
    return out
