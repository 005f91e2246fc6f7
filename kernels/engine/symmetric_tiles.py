"""Sums over tiles of rows and columns at once: of exp2(score - |s|), and of softplus and sigmoid.

With the fixed shift |s| the exponentials E_ik = exp(s <u_i, v_k> - |s|) serve row i and column k. Where the columns are
the rows, E is symmetric, and tiles on and above the diagonal do.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import BY_SCALE, FIXED
from .mask import Mask, kept, needs_mask
from .online_softmax import PartialSums
from .scale import Scale, has_fixed_shift, log2_bias, log2_scale
from .tile import exp2_of, load_vector, score_of, sigmoid_of, similarities_of, softplus_of, tile_dots
from .unit_rows import UnitRows


@triton.jit
def _triangle(program):
    """(row, column) of the program-th block on or above the diagonal, column by column."""
    column = ((tl.sqrt(8.0 * program.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded.
    column = tl.where(column * (column + 1) // 2 > program, column - 1, column)
    column = tl.where((column + 1) * (column + 2) // 2 <= program, column + 1, column)
    return program - column * (column + 1) // 2, column


@triton.jit
def _square(squares, SYMMETRIC: tl.constexpr):
    """(row, column) of this program's square; squares: down the rows."""
    if SYMMETRIC:
        return _triangle(tl.program_id(0))
    else:
        return tl.program_id(0) % squares, tl.program_id(0) // squares


@triton.jit
def _add(out, values, slot, first, count, with_before, wanted, BLOCK: tl.constexpr):
    """Adds a tile's sums to those in global memory, `slot` of the rows first .. first + BLOCK, of this program alone.

    with_before: false for the first of a square's tiles that add to these rows: the memory holds nothing yet. wanted:
    whether to add at all. No float atomics: a program adds its tiles in one order.
    """
    if out is not None:
        index = first + tl.arange(0, BLOCK)
        place = out + slot.to(tl.int64) * count + index
        inside = (index < count) & wanted
        before = tl.load(place, mask=inside & with_before, other=0)
        tl.store(place, before + values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _terms(
    dots, scale, shift, row, rows, column, columns, half, row_ids, column_ids,
    SOFTPLUS: tl.constexpr, WITH_RANKS: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(exponentials, -) or (softplus, sigmoids) of a tile, 0 for pairs that do not count.

    WITH_RANKS: the mask is applied to every tile, needed or not. `_ranks` has computed it before, and behind a branch
    the compiler would keep it in registers beside the exponentials.
    """
    if SOFTPLUS:
        score = score_of(dots, scale, shift)
        e, p = softplus_of(score), sigmoid_of(score)
    else:
        e = exp2_of(dots, scale, shift)
        p = e
    if WITH_RANKS or needs_mask(row, rows, column, columns, half, MASK, BLOCK, BLOCK):
        keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK, BLOCK)
        e, p = tl.where(keep, e, 0.0), tl.where(keep, p, 0.0)
    return e, p


@triton.jit
def _ranks(
    dots, row_factors, column_factors, positive, sign, row, rows, column, columns, half, row_ids, column_ids,
    MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many pairs of a tile are above each row's positive, and each column's; the rows' sums of similarities."""
    keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK, BLOCK)
    similarities = similarities_of(dots, row_factors, column_factors) * sign
    of_rows = load_vector(positive, row, rows, BLOCK) * sign
    of_columns = load_vector(positive, column, columns, BLOCK) * sign
    above_rows = tl.sum((keep & (similarities > of_rows[:, None])).to(tl.int32), 1)
    above_columns = tl.sum((keep & (similarities > of_columns[None, :])).to(tl.int32), 0)
    return above_rows, above_columns, tl.sum(tl.where(keep, similarities, 0.0), 1) * sign


# `group` depends on the batch size: specialised by it, the kernel would be compiled anew for other batches.
@triton.jit(do_not_specialize=["group"])
def _symmetric_tiles_kernel(
    x, x_factors, x_sums, x_ranks, y, y_factors, y_sums, y_ranks, positive, totals, sigmoids, bias, scale, temperature,
    rows, columns, half, row_ids, column_ids,
    group, SYMMETRIC: tl.constexpr, LAUNCHED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """A square of group x group tiles: sums of its rows to slot column_square, of its columns to slot row_square.

    Every row and column gets one sum in every slot. Where SYMMETRIC, y is x: squares on the diagonal hold each pair
    twice and sum rows only. With a bias: sums of rows only. All sums grow in global memory, so that a program needs as
    many registers for a large square as for a small one.
    """
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        if not has_fixed_shift(s):
            return
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    shift = (tl.abs(s) if bias is None else -log2_bias(bias)).to(accumulator)
    sign = tl.where(s < 0, -1.0, 1.0).to(accumulator)
    row_square, column_square = _square(tl.cdiv(tl.cdiv(rows, BLOCK), group), SYMMETRIC)
    sums_columns = (row_square != column_square) | (not SYMMETRIC)
    down = tl.minimum(group, tl.cdiv(rows, BLOCK) - row_square * group)
    along = tl.minimum(group, tl.cdiv(columns, BLOCK) - column_square * group)
    total = tl.zeros((BLOCK,), accumulator)
    for tile in range(down * along):
        i, j = tile // along, tile % along
        row, column = (row_square * group + i) * BLOCK, (column_square * group + j) * BLOCK
        # The sums that one thread stored for the tile before, another may load for this one.
        tl.debug_barrier()
        dots = tile_dots(x, row, rows, y, column, columns, WIDTH, BLOCK, BLOCK, BLOCK_D, PRECISION)
        row_scale = tl.zeros((BLOCK,), accumulator) + s.to(accumulator)
        row_factors, column_factors = None, None
        if x_factors is not None:
            row_factors = load_vector(x_factors, row, rows, BLOCK)
            row_scale *= row_factors
        # Before the exponentials: beside them the registers would not do.
        if x_ranks is not None:
            if y_factors is not None:
                column_factors = load_vector(y_factors, column, columns, BLOCK)
            above_rows, above_columns, similarity = _ranks(
                dots, row_factors, column_factors, positive, sign, row, rows, column, columns, half, row_ids,
                column_ids, MASK, BLOCK,
            )  # fmt: skip
            _add(x_ranks, above_rows, column_square, row, rows, j > 0, True, BLOCK)
            _add(y_ranks, above_columns, row_square, column, columns, i > 0, sums_columns, BLOCK)
            total += similarity
        if y_factors is not None:
            # Again, for there are too few registers to keep the factors meanwhile.
            column_factors = load_vector(y_factors, column, columns, BLOCK)
        scaled = dots if column_factors is None else dots * column_factors[None, :]
        e, p = _terms(
            scaled, row_scale[:, None], shift, row, rows, column, columns, half, row_ids, column_ids,
            bias is not None, x_ranks is not None, MASK, BLOCK,
        )  # fmt: skip
        _add(x_sums, tl.sum(e, 1), column_square, row, rows, j > 0, True, BLOCK)
        _add(sigmoids, tl.sum(p, 1), column_square, row, rows, j > 0, True, BLOCK)
        _add(y_sums, tl.sum(e, 0), row_square, column, columns, i > 0, sums_columns, BLOCK)
    if totals is not None:
        both = tl.where(row_square == column_square, 1.0, 2.0)
        tl.store(totals + tl.program_id(0), tl.sum(total.to(tl.float64), 0) * both)


class Squares(NamedTuple):
    """Squares of group x group tiles: how many down the rows and along the columns, which are slots for their sums."""

    group: int
    down: int
    along: int


def squares(x: UnitRows, y: UnitRows, tile: table.Tile) -> Squares:
    """Of more squares than that, the sums would outgrow the rows themselves."""
    down, along = triton.cdiv(x.count, tile.rows), triton.cdiv(y.count, tile.rows)
    group = triton.next_power_of_2(triton.cdiv(max(down, along), table.slots(x.values.device)))
    return Squares(group, triton.cdiv(down, group), triton.cdiv(along, group))


class TileSums(NamedTuple):
    """What the kernel fills, by slot and row: the columns' where asked for, of softplus the sigmoids' beside."""

    rows: PartialSums
    columns: PartialSums | None = None
    sigmoids: Tensor | None = None


def symmetric_tiles(
    x: UnitRows,
    y: UnitRows | None,
    scale: Scale,
    mask: Mask,
    positive: Tensor | None,
    sums: TileSums,
    tile: table.Tile,
    bias: Tensor | None = None,
) -> None:
    """Fills the sums of the rows x over the rows y, None for x itself, and the other way round.

    positive: similarities of the rows and of the columns, where ranks are wanted. bias: on the device, for the sums
    of softplus.
    """
    columns = x if y is None else y
    of_columns = sums.rows if y is None else sums.columns
    group, down, along = squares(x, columns, tile)
    _symmetric_tiles_kernel[(down * (down + 1) // 2 if y is None else down * along,)](
        x.values,
        x.factors,
        sums.rows.sums,
        sums.rows.ranks,
        columns.values,
        columns.factors,
        of_columns.sums,
        of_columns.ranks,
        positive,
        sums.rows.totals,
        sums.sigmoids,
        bias,
        *scale.arguments,
        x.count,
        columns.count,
        *mask.arguments,
        group,
        SYMMETRIC=y is None,
        LAUNCHED=FIXED.value if bias is not None else scale.form,
        WIDTH=x.width,
        BLOCK=tile.rows,
        BLOCK_D=tile.depth,
        PRECISION=table.precision(x.kind),
        MASK=mask.code,
        **tile.options,
    )
