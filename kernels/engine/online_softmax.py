"""A walk over keys with a running maximum: the online softmax of flash attention, with queries for rows.

For every query it finds the sum of exp2(score) over its keys and, where asked, the number of keys that rank above the
positive and the weighted sum of the keys. It is right at any temperature and for keys of any norm. The keys are cut
into pieces where there are few queries; `loss_rows.py` merges the sums of the pieces, in their order.
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
from .precision import INTERPRETED, accumulator_dtype
from .scale import Scale, allows_fixed_shift, log2_scale
from .tile import add_weighted_rows, dot, exp2_of, load_rows, load_vector, tile_dots, without_unit
from .unit_rows import UnitRows


class PartialSums(NamedTuple):
    """Sums over a part of the keys, a slot for each part. The last three are None unless they are asked for."""

    sums: Tensor  # (slots, n) float64: of exp2(score - maximum)
    maxima: Tensor | None  # (slots, n): of the scores; None where every maximum is |s|
    ranks: Tensor | None  # (slots, n) int32: how many keys are more similar than the positive
    totals: Tensor | None  # (parts,) float64: the sum of all similarities, in any number of parts
    weighted: Tensor | None  # (slots, n, width): of exp2(score - maximum) * key


@triton.jit
def _load_queries(query, row, queries, s, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr):
    """Whole rows of queries (BLOCK_M, WIDTH), which are multiplied by the sign of s."""
    x = load_rows(query, row, queries, 0, WIDTH, BLOCK_M, WIDTH)
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return tl.where(s < 0, -x, x)


@triton.jit
def _rank_threshold(positive, factors, row, queries, sign, BLOCK_M: tl.constexpr):
    """What the dots of a query must exceed for the key to rank above the positive, (BLOCK_M,)."""
    threshold = load_vector(positive, row, queries, BLOCK_M)
    threshold *= sign.to(threshold.dtype)
    if factors is not None:
        # Allow 5e-7 for the rounding of the factors: a key equal to the positive must not rank above it.
        threshold = (threshold + tl.abs(threshold) * 5e-7) / factors
    return threshold


@triton.jit
def _update(highest, sum_of_exp, dots, magnitude):
    """The running maximum and sum (BLOCK_M,) after a tile of dots (BLOCK_M, BLOCK_N).

    Returns besides what earlier sums must be multiplied by, (BLOCK_M,), and the tile's exponentials.
    """
    before = highest
    highest = tl.maximum(highest, tl.max(dots, 1) * magnitude)
    factor = tl.exp2(before - highest)
    e = exp2_of(dots, magnitude[:, None], highest[:, None])
    sum_of_exp = sum_of_exp * factor.to(tl.float64) + tl.sum(e, 1).to(tl.float64)
    return highest, sum_of_exp, factor, e


@triton.jit
def _store_sums(
    sums, maxima, ranks, totals, weighted,  # see PartialSums
    sum_of_exp, highest, above, total,  # (BLOCK_M,): what a program found for its queries
    weighted_sum,  # (BLOCK_M, WIDTH), or None
    factors, sign, row, piece, queries, BLOCK_M: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i = row + tl.arange(0, BLOCK_M)
    place = piece.to(tl.int64) * queries + i
    tl.store(sums + place, sum_of_exp, mask=i < queries)
    tl.store(maxima + place, highest, mask=i < queries)
    if ranks is not None:
        tl.store(ranks + place, above, mask=i < queries)
    if totals is not None:
        total *= sign.to(total.dtype)
        if factors is not None:
            total *= factors
        total = tl.where(sum_of_exp == sum_of_exp, total, float("nan"))
        total = tl.sum(tl.where(i < queries, total, 0.0).to(tl.float64), 0)
        tl.store(totals + tl.program_id(0) * tl.num_programs(1) + piece, total)
    if weighted is not None:
        out = weighted + place[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        tl.store(out, weighted_sum, mask=(i < queries)[:, None])


@triton.jit
def _online_softmax_kernel(
    query, query_factors,  # (queries, WIDTH), (queries,) or None
    key, key_factors,  # (keys, WIDTH), (keys,) or None
    positive,  # (queries,): similarities of the positives; read where ranks are counted
    sums, maxima, ranks, totals, weighted,  # see PartialSums
    scale, scale_tensor,  # see Scale
    queries, keys, length,  # a piece has `length` keys
    half, query_ids, key_ids,  # see Mask
    MAY_HOLD_INF: tl.constexpr, MASK: tl.constexpr, HOST_FORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program walks with BLOCK_M queries over one piece of the keys."""
    s = log2_scale(scale, scale_tensor)
    if HOST_FORM == BY_SCALE:
        if allows_fixed_shift(s):
            return
    accumulator: tl.constexpr = maxima.dtype.element_ty
    row, piece = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    # Dots get the sign of s, so that the largest dot has the largest score: a score is dot * magnitude.
    sign = tl.where(s < 0, -1.0, 1.0)
    magnitude = tl.zeros((BLOCK_M,), accumulator) + tl.abs(s).to(accumulator)
    own = None
    if query_factors is not None:
        own = load_vector(query_factors, row, queries, BLOCK_M)
        magnitude *= own
    if ranks is not None:
        threshold = _rank_threshold(positive, own, row, queries, sign, BLOCK_M)
    above, total = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), accumulator)
    # The maximum starts at a finite number: from -Inf, as long as no key counted, a difference would be NaN.
    highest = tl.full((BLOCK_M,), -3.0e38, accumulator)
    # float64: beside one large term, thousands of tiles of small ones would be rounded away.
    sum_of_exp = tl.zeros((BLOCK_M,), tl.float64)
    weighted_sum = tl.zeros((BLOCK_M, WIDTH), accumulator) if weighted is not None else None
    if WIDTH == BLOCK_D:
        x = _load_queries(query, row, queries, s, WIDTH, BLOCK_M)
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
        if MAY_HOLD_INF:
            # A key that is read where it lies may hold Inf. Without this a score of -Inf would make a finite loss.
            sum_of_exp += tl.where(tl.min(dots, 1) == float("-inf"), float("nan"), 0.0)
        if needs_mask(row, queries, column, keys, half, MASK, BLOCK_M, BLOCK_N):
            keep = kept(row, queries, column, keys, half, query_ids, key_ids, MASK, BLOCK_M, BLOCK_N)
            dots = tl.where(keep, dots, float("-inf"))
        if ranks is not None:
            above += tl.sum((dots > threshold[:, None]).to(tl.int32), 1)
        if totals is not None:
            total += tl.sum(tl.where(dots == float("-inf"), 0.0, dots), 1)
        highest, sum_of_exp, factor, e = _update(highest, sum_of_exp, dots, magnitude)
        if weighted is not None:
            weighted_sum = add_weighted_rows(weighted_sum * factor[:, None], e, others, y, PRECISION)
    if weighted is not None:
        weighted_sum = without_unit(weighted_sum, key.dtype.element_ty)
    _store_sums(
        sums, maxima, ranks, totals, weighted, sum_of_exp, highest, above, total, weighted_sum, own, sign, row, piece,
        queries, BLOCK_M, WIDTH,
    )  # fmt: skip


def new_partial_sums(
    slots: int, parts: int, query: UnitRows, with_ranks: bool = False, with_weighted: bool = False
) -> PartialSums:  # fmt: skip
    """Memory for the sums of all queries in `slots` slots. parts: of the totals, which come with ranks; 0 for none."""
    device, dtype, count = query.values.device, accumulator_dtype(query.values.dtype), query.count
    return PartialSums(
        torch.empty((slots, count), dtype=torch.float64, device=device),
        torch.empty((slots, count), dtype=dtype, device=device),
        torch.empty((slots, count), dtype=torch.int32, device=device) if with_ranks else None,
        # The totals start at 0, since of two kernels that are launched only one fills its parts.
        torch.zeros(parts, dtype=torch.float64, device=device) if with_ranks and parts else None,
        torch.empty((slots, count, query.width), dtype=dtype, device=device) if with_weighted else None,
    )


class Split(NamedTuple):
    """How a walk is shared among programs: blocks of queries, and for each of them pieces of `length` keys."""

    blocks: int
    pieces: int
    length: int


def split(query: UnitRows, keys: UnitRows, tile: table.Tile) -> Split:
    """The split of a walk of these queries over these keys, which the shapes and the device decide alone."""
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
    may_hold_inf: bool = False,
    host_form: int = ONLINE.value,
) -> None:
    """Fills `partial`, of which a walk uses split(query, keys, tile).pieces slots, with the sums over the keys.

    positive (n,): the positives' similarities (tile.pair_dots), where ranks are asked for. may_hold_inf: whether keys
    may hold Inf. Weighted sums need a tile as deep as the rows are wide, which is possible up to table.FUSED_WIDTH.
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
        MAY_HOLD_INF=may_hold_inf,
        MASK=mask.code,
        HOST_FORM=host_form,
        WIDTH=query.width,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        BLOCK_D=tile.depth,
        PRECISION=table.precision(query.kind),
        **tile.options,
    )
