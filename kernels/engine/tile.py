"""Products of two blocks of rows, and what is computed of them: scores, exponentials, sigmoids.

Notation of `ssl_fast.reference`: u_i are unit rows and s = 1 / temperature. Scores are in powers of
two, s log2(e) <u_i, u_k>, so that exp2 needs no further product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import HALF_UNIT, LN2
from .precision import INTERPRETED, to_tf32, wide
from .unit_rows import UnitRows


@triton.jit
def load_rows(
    x, first, count, depth, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Rows first .. of x (count, WIDTH), columns depth .. : (BLOCK, BLOCK_D), zero beyond count."""
    row = tl.arange(0, BLOCK)
    # The block's place in 64 bits: x may have more than 2^31 elements. Within it 32 bits do.
    place = x + tl.cast(first, tl.int64) * WIDTH + depth
    inside = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(place + row[:, None] * WIDTH + inside, mask=(first + row < count)[:, None], other=0.0)


@triton.jit
def load_vector(x, first, count, BLOCK: tl.constexpr):
    """x[first .. first + BLOCK], zero beyond count; first + BLOCK may pass it."""
    index = first + tl.arange(0, BLOCK)
    return tl.load(x + index, mask=index < count, other=0.0)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b in float32, of float64 in float64."""
    if a.dtype == tl.float64:
        return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float64)
    elif INTERPRETED:
        # NumPy's float32 products are rounded by their place in the matrix: equal rows would not tie.
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
    else:
        return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def zero_dots(dtype: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """What parts of dots are added to: as wide as `part_of_dots` is."""
    return tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if dtype == tl.float64 or INTERPRETED else tl.float32)


@triton.jit
def part_of_dots(a, b, PRECISION: tl.constexpr):
    """`dot` of some columns. Devices add on in one order, however the width is cut; the interpreter must not round."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
    else:
        return dot(a, b, PRECISION)


@triton.jit
def tile_dots(
    a, a_first, a_count, b, b_first, b_count,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """<a_i, b_k> of two blocks of rows, walking along the width."""
    dots = zero_dots(a.dtype.element_ty, BLOCK_M, BLOCK_N)
    for depth in range(0, WIDTH, BLOCK_D):
        x = load_rows(a, a_first, a_count, depth, WIDTH, BLOCK_M, BLOCK_D)
        y = load_rows(b, b_first, b_count, depth, WIDTH, BLOCK_N, BLOCK_D)
        dots += part_of_dots(x, tl.trans(y), PRECISION)
    return dots.to(tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32)


@triton.jit
def similarities_of(dots, row_factors, column_factors):
    """<u_i, u_k> of the rows' dots. Factors are multiplied first: both sides round alike, and equal rows tie."""
    if row_factors is None and column_factors is None:
        return dots
    elif column_factors is None:
        return dots * row_factors[:, None]
    elif row_factors is None:
        return dots * column_factors[None, :]
    else:
        return dots * (row_factors[:, None] * column_factors[None, :])


@triton.jit
def score_of(dots, scale, shift):
    """dots * scale - shift, the score rounded only together with what is subtracted."""
    scale, shift = tl.broadcast(scale, dots)[0], tl.broadcast(shift, dots)[0]
    if INTERPRETED and dots.dtype != tl.float64:  # where tl.fma is two operations
        return (dots.to(tl.float64) * scale - shift).to(tl.float32)
    else:
        return tl.fma(dots, scale, -shift)


@triton.jit
def exp2_of(dots, scale, shift):
    """2^(dots * scale - shift)."""
    return tl.exp2(score_of(dots, scale, shift))


@triton.jit
def sigmoid_of(score):
    """The sigmoid of a score in powers of two, to its last digits near 0 too."""
    small = tl.exp2(-tl.abs(score))
    return tl.where(score < 0, small, 1.0) / (1.0 + small)


@triton.jit
def log2_of_1_plus(x):
    """log2(1 + x) of x in [0, 1], to the last digits of x near 0 too."""
    if x.dtype == tl.float64:
        w = 1.0 + x
        # What rounding took from 1 + x, given back as the ratio of x to what is left of it.
        return tl.where(w == 1.0, x, tl.log(w) * (x / tl.where(w == 1.0, 1.0, w - 1.0))) * (1 / LN2)
    else:
        # 2 artanh(z) as a series: the devices' logarithm has few digits near 1.
        z = x / (2.0 + x)
        square = z * z
        series = 1.0 / 11 + square * (1.0 / 13)
        for odd in tl.static_range(9, 0, -2):
            series = 1.0 / odd + square * series
        return z * series * (2 / LN2)


@triton.jit
def softplus_of(score):
    """ln(1 + e^x) of a score x in powers of two."""
    return (tl.where(score > 0, score, 0.0) + log2_of_1_plus(tl.exp2(-tl.abs(score)))) * LN2


@triton.jit
def add_weighted(accumulator, weights, key_factors, values, PRECISION: tl.constexpr):
    """accumulator + weights @ unit keys, in units of `weight_unit`."""
    if key_factors is not None:
        weights *= key_factors[None, :]
    if values.dtype == tl.float16:
        weights *= HALF_UNIT
    if PRECISION == "tf32":
        weights = to_tf32(weights)
    elif not (INTERPRETED and values.dtype == tl.bfloat16):
        weights = weights.to(values.dtype)
    return accumulator + dot(weights, values, PRECISION)


@triton.jit
def in_units(accumulator, dtype: tl.constexpr):
    return accumulator * (1.0 / HALF_UNIT) if dtype == tl.float16 else accumulator


@triton.jit
def _pair_dots_kernel(
    a, a_factors, b, b_factors, out, count, offset,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # As one tile of products, of which the diagonal is wanted: with the rounding of the other tiles,
    # so that equal rows tie exactly and what should cancel does.
    first = tl.program_id(0) * BLOCK
    row = first + tl.arange(0, BLOCK)
    partner = row + offset
    partner = tl.where(partner >= count, partner - count, partner)
    dots = zero_dots(a.dtype.element_ty, BLOCK, BLOCK)
    for depth in range(0, WIDTH, BLOCK_D):
        x = load_rows(a, first, count, depth, WIDTH, BLOCK, BLOCK_D)
        place = b + partner.to(tl.int64)[:, None] * WIDTH + depth + tl.arange(0, BLOCK_D)[None, :]
        y = tl.load(place, mask=(row < count)[:, None], other=0.0)
        dots += part_of_dots(x, tl.trans(y), PRECISION)
    dots = dots.to(out.dtype.element_ty)
    diagonal = tl.arange(0, BLOCK)[:, None] == tl.arange(0, BLOCK)[None, :]
    own = tl.sum(tl.where(diagonal, dots, 0.0), 1)
    factors = tl.full((BLOCK,), 1.0, out.dtype.element_ty)
    if a_factors is not None:
        factors *= tl.load(a_factors + row, mask=row < count, other=0.0)
    if b_factors is not None:
        factors *= tl.load(b_factors + partner, mask=row < count, other=0.0)
    own *= factors
    tl.store(out + row, own, mask=row < count)


def pair_dots(a: UnitRows, b: UnitRows, tile: table.Tile, offset: int = 0) -> Tensor:
    """<u_i, v_p> for all i, v_p the unit row p = (i + offset) mod n of b, rounded as in `similarities_of`.

    tile: of the kernel whose dots these are compared with.
    """
    out = torch.empty(a.count, dtype=wide(a.values.dtype), device=a.values.device)
    _pair_dots_kernel[(triton.cdiv(a.count, tile.rows),)](
        a.values,
        a.factors,
        b.values,
        b.factors,
        out,
        a.count,
        offset,
        WIDTH=a.width,
        BLOCK=tile.rows,
        # Two blocks of whole wide rows would not fit; the order of sums is the same.
        BLOCK_D=min(tile.depth, 64),
        PRECISION=table.precision(a.kind),
        **tile.options,
    )
    return out
