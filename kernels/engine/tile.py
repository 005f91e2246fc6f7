"""What all tile kernels share: the scale, loading rows, products, and which pairs are left out.

Notation of `ssl_fast.reference`: u_i are unit rows and s = 1 / temperature. Scores are in powers of
two, s log2(e) <u_i, u_k>, so that exp2 needs no further product.
"""

import os

import triton
import triton.language as tl

# The interpreter computes bfloat16 arithmetic wrongly and rounds to it by cutting off: there, products
# are taken in float32 and results are rounded by hand.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Inverse norms from here on are 1 / EPS (rows.py): of rows whose norm was clamped.
LEAST_CLAMPED = tl.constexpr(0.9999999e12)

# The pairs (row, column) that count: all; but the row itself; but the row and its partner half a batch away; those
# whose ids are equal, but the row itself; whose ids are equal; whose ids differ. The second to fourth
# leave out k = i, the last three have ids.
ALL, NOT_SELF, NOT_SELF_NOR_PARTNER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
IDS_EQUAL_NOT_SELF, IDS_EQUAL, IDS_DIFFER = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
# Which form of the softmax a launch is for. BY_SCALE: both were launched, and the temperature on the device says.
# SIGMOID: no softmax.
FIXED, ONLINE, BY_SCALE, SIGMOID = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def log2_scale(scale, temperature):
    """s log2(e) in float64: `scale`, or by a pointer to the temperature, NaN where its value is refused."""
    if temperature is None:
        return tl.cast(scale, tl.float64)
    else:
        t = tl.load(temperature).to(tl.float64)
        # reference.TEMPERATURES
        return tl.where((tl.abs(t) >= 1e-8) & (tl.abs(t) <= 1e8), LOG2E / t, float("nan"))


@triton.jit
def has_fixed_shift(log2_scale):
    """Whether exp(-2 |s|) is a normal number, so that |s| can be every row's shift."""
    return tl.abs(log2_scale) * (2 * LN2) <= 80.0


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
def to_tf32(x):
    """float32 x rounded to the nearest TF32 number, ties away from zero; still float32.

    Tensor cores ignore the low 13 bits of a float32 operand. Without this rounding every product would be too small
    in magnitude, by 7e-4 on average.
    """
    bits = x.to(tl.int32, bitcast=True)
    nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # Inf stays Inf, and the addition would carry a NaN whose bits are all ones into -0.
    return tl.where(tl.abs(x) < float("inf"), nearest, x)


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
def log2_bias(bias):
    """The bias in powers of two, NaN where it is Inf: a sum of zeros would be a finite loss."""
    x = tl.load(bias).to(tl.float64) * LOG2E
    return tl.where(tl.abs(x) < float("inf"), x, float("nan"))


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
def load_vector(x, first, count, BLOCK: tl.constexpr):
    """x[first .. first + BLOCK], zero beyond count; first + BLOCK may pass it."""
    index = first + tl.arange(0, BLOCK)
    return tl.load(x + index, mask=index < count, other=0.0)


@triton.jit
def crosses(row, column, offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds a pair with column - row == offset."""
    away = column - row - offset
    return (away < BLOCK_M) & (away > -BLOCK_N)


@triton.jit
def needs_mask(
    row, rows, column, columns, half, MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Whether a tile has pairs to leave out: few do, and masks cost as much as products."""
    needed = (column + BLOCK_N > columns) | (row + BLOCK_M > rows)
    if MASK >= IDS_EQUAL_NOT_SELF:
        needed |= True
    elif MASK != ALL:
        needed |= crosses(row, column, 0, BLOCK_M, BLOCK_N)
    if MASK == NOT_SELF_NOR_PARTNER:
        needed |= crosses(row, column, half, BLOCK_M, BLOCK_N) | crosses(row, column, -half, BLOCK_M, BLOCK_N)
    return needed


@triton.jit
def kept(
    row, rows, column, columns, half, row_ids, column_ids,
    MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The pairs of a tile that count, inside the matrix."""
    i = (row + tl.arange(0, BLOCK_M))[:, None]
    k = (column + tl.arange(0, BLOCK_N))[None, :]
    keep = (i < rows) & (k < columns)
    if MASK != ALL and MASK <= IDS_EQUAL_NOT_SELF:
        keep &= i != k
    if MASK == NOT_SELF_NOR_PARTNER:
        keep &= (k - i != half) & (i - k != half)
    if MASK >= IDS_EQUAL_NOT_SELF:
        of_rows = load_vector(row_ids, row, rows, BLOCK_M)[:, None]
        of_columns = load_vector(column_ids, column, columns, BLOCK_N)[None, :]
        keep &= (of_rows != of_columns) if MASK == IDS_DIFFER else (of_rows == of_columns)
    return keep


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in dtype, to the nearest."""
    if x.dtype == tl.float64 and dtype != tl.float64:
        x = x.to(tl.float32)  # as PyTorch rounds a double to a half type
    if INTERPRETED and dtype == tl.bfloat16 and x.dtype != tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        x = tl.where(x == x, nearest, x)
    return x.to(dtype)


@triton.jit
def narrowed(gradient, inverse_norm, dtype: tl.constexpr):
    """Gradients of rows (rows, columns) in dtype. inverse_norm (rows): 1 / max(|x|, EPS).

    dU / EPS, the gradient of a zero row, is beyond float16 and saturates where it is finite. Of other rows, Inf tells
    a gradient scaler to back off.
    """
    if dtype == tl.float16:
        beyond = (tl.abs(gradient) > 65504.0) & (tl.abs(gradient) < float("inf"))
        beyond = beyond & (inverse_norm >= LEAST_CLAMPED)[:, None]
        gradient = tl.where(beyond, tl.where(gradient > 0, 65504.0, -65504.0), gradient)
    return rounded(gradient, dtype)
