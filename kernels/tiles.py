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

# Pairs (row, column) that are no negatives: none, the row itself, the row and its partner half a batch away.
ALL, NOT_SELF, NOT_SELF_NOR_PARTNER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
# Which form of the softmax a launch is for. BY_SCALE: both were launched, and the temperature on the device says.
FIXED, ONLINE, BY_SCALE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


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
def exp2_of(dots, scale, shift):
    """2^(dots * scale - shift), the score rounded only together with what is subtracted."""
    scale, shift = tl.broadcast(scale, dots)[0], tl.broadcast(shift, dots)[0]
    if INTERPRETED and dots.dtype != tl.float64:  # where tl.fma is two operations
        return tl.exp2((dots.to(tl.float64) * scale - shift).to(tl.float32))
    else:
        return tl.exp2(tl.fma(dots, scale, -shift))


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
    if MASK != ALL:
        needed |= crosses(row, column, 0, BLOCK_M, BLOCK_N)
    if MASK == NOT_SELF_NOR_PARTNER:
        needed |= crosses(row, column, half, BLOCK_M, BLOCK_N) | crosses(row, column, -half, BLOCK_M, BLOCK_N)
    return needed


@triton.jit
def kept(row, rows, column, columns, half, MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The pairs of a tile that count: negatives inside the matrix."""
    i = (row + tl.arange(0, BLOCK_M))[:, None]
    k = (column + tl.arange(0, BLOCK_N))[None, :]
    keep = (i < rows) & (k < columns)
    if MASK != ALL:
        keep &= i != k
    if MASK == NOT_SELF_NOR_PARTNER:
        keep &= (k - i != half) & (i - k != half)
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
def narrowed(x, dtype: tl.constexpr):
    """x in dtype; a finite number too large for float16 (the gradient of a zero row is dU / EPS) saturates."""
    if dtype == tl.float16:
        x = tl.where((x > 65504.0) & (x < float("inf")), 65504.0, x)
        x = tl.where((x < -65504.0) & (x > float("-inf")), -65504.0, x)
    return rounded(x, dtype)
