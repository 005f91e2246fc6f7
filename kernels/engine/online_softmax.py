"""One walk over keys: for every query the sum of exp2(score), its maximum and, when asked, the weighted sum of keys.

The online softmax of flash attention, with queries for rows: right at any temperature and for keys of
any norm. The sums of pieces of the keys are merged, in their order, by `loss_rows.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import BY_SCALE, ONLINE
from .mask import Mask, kept, needs_mask
from .precision import INTERPRETED, wide
from .scale import Scale, has_fixed_shift, log2_scale
from .tile import add_weighted, dot, exp2_of, in_units, load_rows, load_vector, tile_dots
from .unit_rows import UnitRows


class PartialSums(NamedTuple):
    """Sums over pieces of the keys, by piece and row.

    sums (pieces, n) float64: of exp2(score - maximum). maxima (pieces, n): in powers of two; None where
    all are |s|. ranks (pieces, n): keys above the positive. totals: of the similarities, in any number of
    parts. weighted (pieces, n, width): of exp2(score - maximum) * key. The last three are None unless asked for.
    """

    sums: Tensor
    maxima: Tensor
    ranks: Tensor | None
    totals: Tensor | None
    weighted: Tensor | None


@triton.jit
def _online_softmax_kernel(
    query, query_factors, key, key_factors, positive, sums, maxima, ranks, totals, weighted, scale, temperature,
    queries, keys, length, half, query_ids, key_ids,
    POISON: tl.constexpr, MASK: tl.constexpr, LAUNCHED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        if has_fixed_shift(s):
            return
    accumulator: tl.constexpr = maxima.dtype.element_ty
    row, piece = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    sign = tl.where(s < 0, -1.0, 1.0)
    # Dots get the sign, so that the largest dot is the largest score; magnitudes are of their scale.
    magnitude = tl.zeros((BLOCK_M,), accumulator) + tl.abs(s).to(accumulator)
    if query_factors is not None:
        own = load_vector(query_factors, row, queries, BLOCK_M)
        magnitude *= own
    if ranks is not None:
        threshold = load_vector(positive, row, queries, BLOCK_M) * sign.to(accumulator)
        if query_factors is not None:
            # In the dots' units. Factors round differently from either side: equal rows are none above.
            threshold = (threshold + tl.abs(threshold) * 5e-7) / own
        above = tl.zeros((BLOCK_M,), tl.int32)
    if totals is not None:
        total = tl.zeros((BLOCK_M,), accumulator)
    # From -Inf, where all so far was left out, a difference would be NaN.
    highest = tl.full((BLOCK_M,), -3.0e38, accumulator)
    # float64: beside one large term, thousands of tiles of small ones would be rounded away.
    sum_of_exp = tl.zeros((BLOCK_M,), tl.float64)
    if weighted is not None:
        weighted_sum = tl.zeros((BLOCK_M, WIDTH), accumulator)
    if WIDTH == BLOCK_D:
        x = load_rows(query, row, queries, 0, WIDTH, BLOCK_M, BLOCK_D)
        if INTERPRETED and x.dtype == tl.bfloat16:
            x = x.to(tl.float32)
        x = tl.where(s < 0, -x, x)
    end = tl.minimum((piece + 1) * length, keys)
    for column in range(piece * length, end, BLOCK_N):
        if WIDTH == BLOCK_D:
            y = load_rows(key, column, keys, 0, WIDTH, BLOCK_N, BLOCK_D)
            dots = dot(x, tl.trans(y), PRECISION)
        else:
            dots = tile_dots(query, row, queries, key, column, keys, WIDTH, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION)
            dots *= sign.to(accumulator)
        others = None
        if key_factors is not None:
            others = load_vector(key_factors, column, keys, BLOCK_N)
            dots *= others[None, :]
        if POISON:
            # Inf in a key that is read as it is: a score of -Inf would be a finite loss without it.
            sum_of_exp += tl.where(tl.min(dots, 1) == float("-inf"), float("nan"), 0.0)
        if needs_mask(row, queries, column, keys, half, MASK, BLOCK_M, BLOCK_N):
            keep = kept(row, queries, column, keys, half, query_ids, key_ids, MASK, BLOCK_M, BLOCK_N)
            dots = tl.where(keep, dots, float("-inf"))
        if ranks is not None:
            above += tl.sum((dots > threshold[:, None]).to(tl.int32), 1)
        if totals is not None:
            total += tl.sum(tl.where(dots == float("-inf"), 0.0, dots), 1)
        before = highest
        highest = tl.maximum(highest, tl.max(dots, 1) * magnitude)
        factor = tl.exp2(before - highest)
        e = exp2_of(dots, magnitude[:, None], highest[:, None])
        sum_of_exp = sum_of_exp * factor.to(tl.float64) + tl.sum(e, 1).to(tl.float64)
        if weighted is not None:
            weighted_sum *= factor[:, None]
            weighted_sum = add_weighted(weighted_sum, e, others, y, PRECISION)
    i = row + tl.arange(0, BLOCK_M)
    place = piece.to(tl.int64) * queries + i
    tl.store(sums + place, sum_of_exp, mask=i < queries)
    tl.store(maxima + place, highest, mask=i < queries)
    if ranks is not None:
        tl.store(ranks + place, above, mask=i < queries)
    if totals is not None:
        total *= sign.to(accumulator)
        if query_factors is not None:
            total *= own
        total = tl.where(sum_of_exp == sum_of_exp, total, float("nan"))
        total = tl.sum(tl.where(i < queries, total, 0.0).to(tl.float64), 0)
        tl.store(totals + tl.program_id(0) * tl.num_programs(1) + piece, total)
    if weighted is not None:
        column = tl.arange(0, WIDTH)
        out = weighted + place[:, None] * WIDTH + column[None, :]
        tl.store(out, in_units(weighted_sum, key.dtype.element_ty), mask=(i < queries)[:, None])


def new_partial_sums(
    slots: int, parts: int, query: UnitRows, with_ranks: bool = False, with_weighted: bool = False
) -> PartialSums:  # fmt: skip
    """Memory for the sums of all queries over `slots` pieces; parts: of the totals, with ranks; 0 for none."""
    device, dtype, count = query.values.device, wide(query.values.dtype), query.count
    return PartialSums(
        torch.empty((slots, count), dtype=torch.float64, device=device),
        torch.empty((slots, count), dtype=dtype, device=device),
        torch.empty((slots, count), dtype=torch.int32, device=device) if with_ranks else None,
        # Zero: of two launched kernels one fills its parts.
        torch.zeros(parts, dtype=torch.float64, device=device) if with_ranks and parts else None,
        torch.empty((slots, count, query.width), dtype=dtype, device=device) if with_weighted else None,
    )


class Split(NamedTuple):
    """How a walk is shared: blocks of queries, pieces of `length` keys."""

    blocks: int
    pieces: int
    length: int


def split(query: UnitRows, keys: UnitRows, tile: table.Tile) -> Split:
    blocks = triton.cdiv(query.count, tile.rows)
    return Split(blocks, *table.pieces(query.values.device, blocks, keys.count, tile.columns))


def online_softmax(
    query: UnitRows,
    keys: UnitRows,
    scale: Scale,
    positive: Tensor | None,
    partial: PartialSums,
    tile: table.Tile,
    mask: Mask,
    poison: bool = False,
    launched: int = ONLINE.value,
) -> None:
    """Fills the sums of all queries over the keys that `mask` allows, split(query, keys, tile).pieces slots of them.

    positive: similarities (tile.pair_dots), where ranks are wanted. poison: keys may hold Inf. Weighted sums want a
    tile as deep as the rows are wide, up to table.FUSED_WIDTH.
    """
    blocks, pieces, length = split(query, keys, tile)
    _online_softmax_kernel[(blocks, pieces)](
        query.values,
        query.factors,
        keys.values,
        keys.factors,
        positive,
        *partial,
        *scale.arguments,
        query.count,
        keys.count,
        length,
        *mask.arguments,
        POISON=poison,
        MASK=mask.code,
        LAUNCHED=launched,
        WIDTH=query.width,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        BLOCK_D=tile.depth,
        PRECISION=table.precision(query.kind),
        **tile.options,
    )
