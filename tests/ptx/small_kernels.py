"""Small Triton kernels with known answers."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, block: tl.constexpr):
    i = tl.program_id(0) * block + tl.arange(0, block)
    total = tl.load(x + i, mask=i < n, other=0.0) + tl.load(y + i, mask=i < n, other=0.0)
    tl.store(out + i, total, mask=i < n)


@triton.jit
def softmax(x, out, n, width: tl.constexpr):
    """Of the rows of x, n columns each."""
    row = tl.program_id(0)
    column = tl.arange(0, width)
    values = tl.load(x + row * n + column, mask=column < n, other=float("-inf"))
    numerators = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * n + column, numerators / tl.sum(numerators, 0), mask=column < n)


@triton.jit
def matmul(
    a, b, out, depth, m: tl.constexpr, n: tl.constexpr, block: tl.constexpr, transpose_a: tl.constexpr,
    transpose_b: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """a (m, depth) times b (depth, n); a factor that is transposed lies in memory so."""
    i = tl.arange(0, m)
    j = tl.arange(0, n)
    k = tl.arange(0, block)
    total = tl.zeros((m, n), tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32)
    for first in range(0, depth, block):
        if transpose_a:
            x = tl.trans(tl.load(a + (first + k)[:, None] * m + i[None, :]))
        else:
            x = tl.load(a + i[:, None] * depth + (first + k)[None, :])
        if transpose_b:
            y = tl.trans(tl.load(b + j[:, None] * depth + (first + k)[None, :]))
        else:
            y = tl.load(b + (first + k)[:, None] * n + j[None, :])
        total = tl.dot(x, y, total, input_precision=precision, out_dtype=total.dtype)
    tl.store(out + i[:, None] * n + j[None, :], total)


@triton.jit
def transpose(x, out, m: tl.constexpr, n: tl.constexpr):
    i = tl.arange(0, m)
    j = tl.arange(0, n)
    values = tl.load(x + i[:, None] * n + j[None, :])
    tl.store(out + j[:, None] * m + i[None, :], tl.trans(values))


@triton.jit
def sum_and_sort(x, sums, keys, ordered, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(sums + i, tl.cumsum(tl.load(x + i), 0))
    tl.store(ordered + i, tl.sort(tl.load(keys + i)))


@triton.jit
def cast(x, half, bfloat, double, integer, long, back, n: tl.constexpr):
    i = tl.arange(0, n)
    values = tl.load(x + i)
    tl.store(half + i, values.to(tl.float16))
    tl.store(bfloat + i, values.to(tl.bfloat16))
    tl.store(double + i, values.to(tl.float64))
    tl.store(integer + i, values.to(tl.int32))
    tl.store(long + i, values.to(tl.int64))
    tl.store(back + i, values.to(tl.float16).to(tl.float32) + values.to(tl.bfloat16).to(tl.float32))


@triton.jit
def integers(x, y, out, n: tl.constexpr):
    """Seven results, n apart."""
    i = tl.arange(0, n)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(out + i, a * b)
    tl.store(out + n + i, a // b)
    tl.store(out + 2 * n + i, a % b)
    tl.store(out + 3 * n + i, a >> 3)
    tl.store(out + 4 * n + i, (a ^ b) & 0xFFFF)
    tl.store(out + 5 * n + i, tl.maximum(a, b))
    tl.store(out + 6 * n + i, tl.minimum(a, b))


@triton.jit
def functions(x, out, n: tl.constexpr):
    """Six results, n apart."""
    i = tl.arange(0, n)
    a = tl.load(x + i)
    tl.store(out + i, tl.exp2(a))
    tl.store(out + n + i, tl.log2(tl.abs(a)))
    tl.store(out + 2 * n + i, tl.log(tl.abs(a)))
    tl.store(out + 3 * n + i, tl.sqrt(tl.abs(a)))
    tl.store(out + 4 * n + i, tl.exp(a))
    tl.store(out + 5 * n + i, 1.0 / a)


@triton.jit
def collatz(x, out):
    """How many steps each number takes to 1: a loop whose length the data decide."""
    i = tl.program_id(0)
    value = tl.load(x + i)
    steps = 0
    while value != 1:
        value = tl.where(value % 2 == 0, value // 2, 3 * value + 1)
        steps += 1
    tl.store(out + i, steps)


@triton.jit
def take_number(counter, out):
    tl.store(out + tl.program_id(0), tl.atomic_add(counter, 1))
