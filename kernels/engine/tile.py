"""Products of two blocks of rows, and what is computed of the products: scores, exponentials, sigmoids.

As in ssl_fast.reference, u_i is a unit row and s = 1 / temperature. A score is s log2(e) <u_i, u_k>: with scores in
powers of two exp2 needs no further product. `dots` are the products of rows as they are stored, which times the rows'
factors are the similarities <u_i, u_k> (see UnitRows).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import HALF_UNIT, LN2
from .precision import INTERPRETED, accumulator_dtype, to_tf32
from .unit_rows import UnitRows


@triton.jit
def load_rows(
    x, first, count, depth, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """The columns depth .. depth + BLOCK_D of rows first .. first + BLOCK of x (count, WIDTH); zero beyond count."""
    row = tl.arange(0, BLOCK)
    # The block's place takes 64 bits, since x may have more than 2^31 elements. Within the block 32 bits are enough.
    place = x + tl.cast(first, tl.int64) * WIDTH + depth
    inside = tl.arange(0, BLOCK_D)[None, :]
    return tl.load(place + row[:, None] * WIDTH + inside, mask=(first + row < count)[:, None], other=0.0)


@triton.jit
def load_vector(x, first, count, BLOCK: tl.constexpr):
    """x[first : first + BLOCK] of x (count,), zero beyond count."""
    index = first + tl.arange(0, BLOCK)
    return tl.load(x + index, mask=index < count, other=0.0)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a (M, K) @ b (K, N), summed in float32, or in float64 where a is float64."""
    if a.dtype == tl.float64:
        return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float64)
    elif INTERPRETED:
        # NumPy rounds float32 products differently at different places of a matrix, so that equal rows would not tie.
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
    else:
        return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def zero_dots(dtype: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Zeros (BLOCK_M, BLOCK_N) to which the parts of `part_of_dots` are added, of rows in dtype."""
    return tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if dtype == tl.float64 or INTERPRETED else tl.float32)


@triton.jit
def part_of_dots(a, b, PRECISION: tl.constexpr):
    """`dot` of some columns of the rows.

    On a device the parts are summed in the same order however the width is cut. In the interpreter they are not rounded
    before they are summed, to the same end.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
    else:
        return dot(a, b, PRECISION)


@triton.jit
def tile_dots(
    a, a_first, a_count,  # a: (a_count, WIDTH)
    b, b_first, b_count,  # b: (b_count, WIDTH)
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The dots (BLOCK_M, BLOCK_N) of a block of rows of a and one of b, summed along the width in steps of BLOCK_D."""
    dots = zero_dots(a.dtype.element_ty, BLOCK_M, BLOCK_N)
    for depth in range(0, WIDTH, BLOCK_D):
        x = load_rows(a, a_first, a_count, depth, WIDTH, BLOCK_M, BLOCK_D)
        y = load_rows(b, b_first, b_count, depth, WIDTH, BLOCK_N, BLOCK_D)
        dots += part_of_dots(x, tl.trans(y), PRECISION)
    return dots.to(tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32)


@triton.jit
def similarities_of(dots, row_factors, column_factors):
    """<u_i, u_k> (M, N) of dots (M, N) and the factors of their rows (M,) and columns (N,), or None.

    Two factors are multiplied with each other first: then <u_i, u_k> and <u_k, u_i> are rounded alike, and equal rows
    tie.
    """
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
    """dots * scale - shift, rounded once, after the subtraction."""
    scale, shift = tl.broadcast(scale, dots)[0], tl.broadcast(shift, dots)[0]
    if INTERPRETED and dots.dtype != tl.float64:  # the interpreter's tl.fma rounds twice
        return (dots.to(tl.float64) * scale - shift).to(tl.float32)
    else:
        return tl.fma(dots, scale, -shift)


@triton.jit
def exp2_of(dots, scale, shift):
    """2^(dots * scale - shift)."""
    return tl.exp2(score_of(dots, scale, shift))


@triton.jit
def sigmoid_of(score):
    """The sigmoid of x, from the score x log2(e), exact to the last digits near 0 too."""
    small = tl.exp2(-tl.abs(score))
    return tl.where(score < 0, small, 1.0) / (1.0 + small)


@triton.jit
def log2_of_1_plus(x):
    """log2(1 + x) of x in [0, 1], exact to the last digits near 0 too."""
    if x.dtype == tl.float64:
        w = 1.0 + x
        # Rounding w took away a part of x. The ratio of x to what is left of it, w - 1, corrects the logarithm.
        return tl.where(w == 1.0, x, tl.log(w) * (x / tl.where(w == 1.0, 1.0, w - 1.0))) * (1 / LN2)
    else:
        # The series of 2 artanh(z): the devices' own logarithm has few correct digits near 1.
        z = x / (2.0 + x)
        square = z * z
        series = 1.0 / 11 + square * (1.0 / 13)
        for odd in tl.static_range(9, 0, -2):
            series = 1.0 / odd + square * series
        return z * series * (2 / LN2)


@triton.jit
def softplus_of(score):
    """ln(1 + e^x), from the score x log2(e)."""
    return (tl.where(score > 0, score, 0.0) + log2_of_1_plus(tl.exp2(-tl.abs(score)))) * LN2


@triton.jit
def add_weighted_rows(accumulator, weights, factors, rows, PRECISION: tl.constexpr):
    """accumulator (M, WIDTH) + weights (M, N) @ the unit rows of `rows` (N, WIDTH) with `factors` (N,).

    For rows in float16 the result is HALF_UNIT times the sum: see `without_unit`.
    """
    if factors is not None:
        weights *= factors[None, :]
    if rows.dtype == tl.float16:
        weights *= HALF_UNIT
    if PRECISION == "tf32":
        weights = to_tf32(weights)
    elif not (INTERPRETED and rows.dtype == tl.bfloat16):
        weights = weights.to(rows.dtype)
    return accumulator + dot(weights, rows, PRECISION)


@triton.jit
def without_unit(accumulator, dtype: tl.constexpr):
    """The sum that `add_weighted_rows` added up for rows in dtype."""
    return accumulator * (1.0 / HALF_UNIT) if dtype == tl.float16 else accumulator


@triton.jit
def _pair_dots_kernel(
    a, a_factors,  # (count, WIDTH), (count,) or None
    b, b_factors,  # the same
    out,  # (count,)
    count, offset,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A whole tile of products of which only the diagonal is used.

    The products are thus rounded as those of other tiles are: equal rows tie exactly, and the difference of two equal
    scores is 0.
    """
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
    """The similarities (n,) of row i of a and row (i + offset) mod n of b, rounded as `similarities_of` rounds.

    tile: of the kernel whose products these are compared with.
    """
    out = torch.empty(a.count, dtype=accumulator_dtype(a.values.dtype), device=a.values.device)
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
        # The shared memory holds no two blocks of whole wide rows. Smaller steps do not change the order of the sums.
        BLOCK_D=min(tile.depth, 64),
        PRECISION=table.precision(a.kind),
        **tile.options,
    )
    return out
