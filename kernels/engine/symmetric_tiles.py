"""Sums over all pairs of two sets of rows, for rows and columns at once: of exponentials, of softplus, of sigmoids.

With the fixed shift |s| the exponential E_ik = exp(s <u_i, v_k> - |s|) serves row i and column k. Where the columns are
the rows, E is symmetric, and the part on and above the diagonal is enough. A program computes a square of
side x side tiles. A square above the diagonal serves its rows and its columns; one on the diagonal has the same rows on
both sides and serves them as rows only.
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
from .scale import Scale, allows_fixed_shift, log2_bias, log2_scale
from .tile import exp2_of, load_vector, score_of, sigmoid_of, similarities_of, softplus_of, tile_dots
from .unit_rows import UnitRows


@triton.jit
def _triangle(program):
    """(row, column) of square number `program` among those on and above the diagonal, column by column."""
    column = ((tl.sqrt(8.0 * program.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded, and the column may be one too high or too low.
    column = tl.where(column * (column + 1) // 2 > program, column - 1, column)
    column = tl.where((column + 1) * (column + 2) // 2 <= program, column + 1, column)
    return program - column * (column + 1) // 2, column


@triton.jit
def _square(squares, SYMMETRIC: tl.constexpr):
    """(row, column) of this program's square, where the rows have `squares` squares."""
    if SYMMETRIC:
        return _triangle(tl.program_id(0))
    else:
        return tl.program_id(0) % squares, tl.program_id(0) // squares


@triton.jit
def _add(
    out,  # (slots, count), or None
    values,  # (BLOCK,)
    slot, first, count, with_before, wanted, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a tile's sums to slot `slot` of rows first .. first + BLOCK, to which this program alone adds.

    with_before: false for the first of a square's tiles that add to these rows, when the memory holds nothing yet.
    wanted: whether to add at all. A program adds its tiles in one order, so that no float atomics are needed.
    """
    if out is not None:
        index = first + tl.arange(0, BLOCK)
        place = out + slot.to(tl.int64) * count + index
        inside = (index < count) & wanted
        before = tl.load(place, mask=inside & with_before, other=0)
        tl.store(place, before + values.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _terms(
    dots,  # (BLOCK, BLOCK)
    scale, shift, row, rows, column, columns, half, row_ids, column_ids,
    SOFTPLUS: tl.constexpr, WITH_RANKS: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The exponentials of a tile, twice; or its softplus and its sigmoids. They are 0 for pairs that do not count.

    WITH_RANKS: the mask is applied to every tile, whether it needs it or not. `_add_ranks` has computed the mask
    already, and behind a branch the compiler would keep it in registers beside the exponentials.
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
def _add_ranks(
    row_ranks, column_ranks,  # (slots, rows), (slots, columns)
    dots,  # (BLOCK, BLOCK)
    row_factors, column_factors,  # (BLOCK,), or None
    positive,  # (rows,): similarities
    sign, row, rows, column, columns, half, row_ids, column_ids, row_square, column_square, i, j, sums_columns,
    MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds how many pairs of a tile rank above each row's positive, and above each column's.

    Returns the rows' sums of similarities, (BLOCK,).
    """
    keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK, BLOCK)
    similarities = similarities_of(dots, row_factors, column_factors) * sign
    of_rows = load_vector(positive, row, rows, BLOCK) * sign
    of_columns = load_vector(positive, column, columns, BLOCK) * sign
    above_rows = tl.sum((keep & (similarities > of_rows[:, None])).to(tl.int32), 1)
    above_columns = tl.sum((keep & (similarities > of_columns[None, :])).to(tl.int32), 0)
    total = tl.sum(tl.where(keep, similarities, 0.0), 1) * sign
    _add(row_ranks, above_rows, column_square, row, rows, j > 0, True, BLOCK)
    _add(column_ranks, above_columns, row_square, column, columns, i > 0, sums_columns, BLOCK)
    return total


# `side` depends on the batch size: specialised by it, the kernel would be compiled anew for other batches.
@triton.jit(do_not_specialize=["side"])
def _symmetric_tiles_kernel(
    x, x_factors, x_sums, x_ranks,  # (rows, WIDTH), (rows,) or None, (slots, rows) twice
    y, y_factors, y_sums, y_ranks,  # the same of the columns; all of x where SYMMETRIC
    positive,  # (rows,): similarities of the positives, or None
    totals, sigmoids, bias,  # (programs,), (slots, rows), a number; or None
    scale, scale_tensor,  # see Scale
    rows, columns,
    half, row_ids, column_ids,  # see Mask
    side, SYMMETRIC: tl.constexpr, HOST_FORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """One square of side x side tiles. A row has a slot for each square that it lies in, and so has a column.

    The square in row_square and column_square writes the sums of its rows to their slot column_square, and those of
    its columns to their slot row_square. Where SYMMETRIC, squares on the diagonal sum their rows only. With a bias,
    only rows are summed. Sums are kept in global memory, so that a large square needs no more registers than a small
    one.
    """
    s = log2_scale(scale, scale_tensor)
    if HOST_FORM == BY_SCALE:
        # The host could not read the scale, so it launched this kernel and online_softmax.py's. If the scale allows no
        # fixed shift, that one computes the sums.
        if not allows_fixed_shift(s):
            return
    accumulator: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    shift = (tl.abs(s) if bias is None else -log2_bias(bias)).to(accumulator)
    sign = tl.where(s < 0, -1.0, 1.0).to(accumulator)
    row_square, column_square = _square(tl.cdiv(tl.cdiv(rows, BLOCK), side), SYMMETRIC)
    sums_columns = (row_square != column_square) | (not SYMMETRIC)
    down = tl.minimum(side, tl.cdiv(rows, BLOCK) - row_square * side)
    along = tl.minimum(side, tl.cdiv(columns, BLOCK) - column_square * side)
    total = tl.zeros((BLOCK,), accumulator)
    for tile in range(down * along):
        i, j = tile // along, tile % along
        row, column = (row_square * side + i) * BLOCK, (column_square * side + j) * BLOCK
        # One thread may load the sums that another thread stored for the tile before.
        tl.debug_barrier()
        dots = tile_dots(x, row, rows, y, column, columns, WIDTH, BLOCK, BLOCK, BLOCK_D, PRECISION)
        row_scale = tl.zeros((BLOCK,), accumulator) + s.to(accumulator)
        row_factors, column_factors = None, None
        if x_factors is not None:
            row_factors = load_vector(x_factors, row, rows, BLOCK)
            row_scale *= row_factors
        # Ranks are counted before the exponentials: there are not enough registers for both at once.
        if x_ranks is not None:
            if y_factors is not None:
                column_factors = load_vector(y_factors, column, columns, BLOCK)
            total += _add_ranks(
                x_ranks, y_ranks, dots, row_factors, column_factors, positive, sign, row, rows, column, columns, half,
                row_ids, column_ids, row_square, column_square, i, j, sums_columns, MASK, BLOCK,
            )  # fmt: skip
        if y_factors is not None:
            # The factors are loaded again: there are too few registers to keep them meanwhile.
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
    """How the tiles are shared among programs: squares of side x side tiles, `down` x `along` of them.

    A row gets a sum in each of `along` slots, a column in each of `down` slots.
    """

    side: int
    down: int
    along: int


def squares(x: UnitRows, y: UnitRows, tile: table.Tile) -> Squares:
    """Squares of which there are at most table.slots: the sums of more would take more memory than the rows."""
    down, along = triton.cdiv(x.count, tile.rows), triton.cdiv(y.count, tile.rows)
    side = triton.next_power_of_2(triton.cdiv(max(down, along), table.slots(x.values.device)))
    return Squares(side, triton.cdiv(down, side), triton.cdiv(along, side))


class TileSums(NamedTuple):
    """What the kernel fills: sums of the rows, of the columns where asked for, and of the sigmoids beside softplus."""

    rows: PartialSums
    columns: PartialSums | None = None
    sigmoids: Tensor | None = None  # (slots, rows)


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
    """Fills the sums of the rows x over the columns y and the other way round; y is None where it is x.

    positive (n,): the similarities of the positives of rows and columns, where ranks are asked for. bias (0-D): on the
    device, for sums of softplus in place of exponentials.
    """
    columns = x if y is None else y
    of_columns = sums.rows if y is None else sums.columns
    side, down, along = squares(x, columns, tile)
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
        side,
        SYMMETRIC=y is None,
        HOST_FORM=FIXED.value if bias is not None else scale.form,
        WIDTH=x.width,
        BLOCK=tile.rows,
        BLOCK_D=tile.depth,
        PRECISION=table.precision(x.kind),
        MASK=mask.code,
        **tile.options,
    )
