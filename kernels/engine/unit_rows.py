"""Rows of any float dtype and any strides -> rows of norm 1 as the tile kernels read them, and their inverse norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import EPS
from .precision import accumulator_dtype, rounded, to_tf32


class UnitRows(NamedTuple):
    """Rows as the tile kernels read them: contiguous, with zeros in the columns beyond the embeddings' dimension.

    Rows in float32 and float64 have norm 1; those for TF32 products ("tf32") are rounded to TF32. Rows that came in
    bfloat16 or float16 are multiplied by a power of two only, since unit rows would be rounded again; products of such
    rows times their `factors` are the products of unit rows. Rows for which no normalisation was asked keep their
    norms, in the same way.
    """

    values: Tensor  # (n, width)
    factors: Tensor | None  # (n,) float32
    inverse_norms: Tensor  # (n,): 1 / max(|x|, EPS) of the rows as given; (0,) if they were not normalised
    dim: int  # of the embeddings, at most the width
    kind: str  # of the products: see table.kind

    @property
    def count(self) -> int:
        return self.values.shape[0]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def tile(self, kernel: str) -> table.Tile:
        """The tile of a kernel for these rows."""
        return table.tile(kernel, self.values.device, self.kind, self.width)


@triton.jit
def _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D: tl.constexpr):
    """The columns depth .. depth + BLOCK_D of the rows `row` of x (count, dim) with any strides, zero outside of x."""
    column = depth + tl.arange(0, BLOCK_D)
    place = x + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * dim_stride
    return tl.load(place, mask=(row < count)[:, None] & (column < dim)[None, :], other=0.0)


@triton.jit
def largest_power(largest):
    """2^-e where 2^e <= largest < 2^(e + 1). Multiplying by it is exact, and it is finite for every `largest`."""
    if largest.dtype == tl.float64:
        exponent = (largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        exponent = tl.minimum(tl.maximum(exponent, 1), 0x7FD)
        return ((0x7FE - exponent) << 52).to(tl.float64, bitcast=True)
    else:
        exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 0xFF
        exponent = tl.minimum(tl.maximum(exponent, 1), 0xFD)
        return ((0xFE - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_norm(squares, power):
    """1 / max(|x|, EPS) divided by `power`, in float64. squares: the sum of the squares of x * power."""
    norm = tl.sqrt(squares.to(tl.float64))
    least = power.to(tl.float64) * EPS
    inverse = 1.0 / tl.where(norm <= least, least, norm)  # written so that a NaN norm stays NaN
    return tl.where(norm < float("inf"), inverse, float("nan"))


@triton.jit
def _prepare_kernel(
    x,  # (count, dim), any strides
    values,  # (count, WIDTH)
    factors,  # (count,), or None
    inverse_norms,  # (count,); not written unless NORMALIZE
    count, dim, row_stride, dim_stride,
    NORMALIZE: tl.constexpr, TF32: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program prepares BLOCK rows, in three passes along them: the largest entry, the squares, the result."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # float32 may not hold the largest numbers of a float64 x, so that the arithmetic is as wide as x at least.
    double: tl.constexpr = x.dtype.element_ty == tl.float64 or values.dtype.element_ty == tl.float64
    accumulator: tl.constexpr = tl.float64 if double else tl.float32
    largest = tl.zeros((BLOCK,), accumulator)
    for depth in range(0, dim, BLOCK_D):
        v = _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D).to(accumulator)
        largest = tl.maximum(largest, tl.max(tl.abs(v), 1))
    power = largest_power(largest)
    # The squares are summed in float64, which makes the norm exact to the last digit. There are only n D of them.
    squares = tl.zeros((BLOCK,), tl.float64)
    for depth in range(0, dim, BLOCK_D):
        v = _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D).to(accumulator)
        v = (v * power[:, None]).to(tl.float64)
        squares += tl.sum(v * v, 1)
    if NORMALIZE:
        inverse = inverse_norm(squares, power)
        tl.store(inverse_norms + row, inverse * power.to(tl.float64), mask=row < count)
        if factors is None:
            scaled = inverse
        else:
            tl.store(factors + row, inverse, mask=row < count)
            scaled = tl.full((BLOCK,), 1.0, tl.float64)
    else:
        scaled, factor = _scale_of_given_rows(power, squares, values.dtype.element_ty)
        if factors is None:
            scaled = scaled * factor
        else:
            tl.store(factors + row, factor, mask=row < count)
    for depth in range(0, WIDTH, BLOCK_D):
        v = _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D).to(accumulator) * power[:, None]
        v = v.to(tl.float64) * scaled[:, None] if double else v * scaled.to(tl.float32)[:, None]
        v = rounded(v, values.dtype.element_ty)
        if TF32:
            v = to_tf32(v)
        place = values + row.to(tl.int64)[:, None] * WIDTH + depth + tl.arange(0, BLOCK_D)[None, :]
        tl.store(place, v, mask=(row < count)[:, None])


@triton.jit
def _scale_of_given_rows(power, squares, dtype: tl.constexpr):
    """(scaled, factor) of rows that are not normalised: x * power * scaled is stored, and times factor it is x again.

    Rows of ordinary size keep their values. Others are stored near 1, which any dtype holds.
    """
    # float16 rows are ordinary as long as float16 holds them: their weights times a factor could leave its range.
    least_power: tl.constexpr = 1e-5 if dtype == tl.float16 else 1e-3
    ordinary = (power > least_power) & (power < 1e3)
    scaled = tl.where(ordinary, 1.0 / power, 1.0).to(tl.float64)
    factor = tl.where(ordinary, 1.0, 1.0 / power).to(tl.float64)
    # A row that holds Inf must give NaN: its score could be -Inf, which would make a finite loss.
    factor = tl.where(squares < float("inf"), factor, float("nan"))
    return scaled, factor


def prepare(
    sources: list[Tensor], dtype: torch.dtype, anchors: Tensor, normalize: bool = True, on_tensor_cores: bool = True
) -> UnitRows:
    """The rows of all sources (n, D), one source below the other, for products in `dtype`: a launch for each source.

    anchors: the queries or views, whose dtype decides the kind of products (table.kind). on_tensor_cores: False for
    rows that enter no matrix product, which keep all digits of float32.
    """
    kind = table.kind(dtype, anchors.dtype, sources[0].device)
    if kind == "tf32" and not on_tensor_cores:
        kind = "ieee"
    count, dim = sum(x.shape[0] for x in sources), sources[0].shape[1]
    width = table.padded_width(dim)
    device = sources[0].device
    values = torch.empty((count, width), dtype=dtype, device=device)
    # Half numbers are TF32 numbers too, so half rows enter TF32 products as they are.
    as_given = kind == "half" or (kind == "tf32" and sources[0].dtype in (torch.float16, torch.bfloat16))
    factors = torch.empty(count, dtype=torch.float32, device=device) if as_given else None
    inverse_norms = torch.empty(count if normalize else 0, dtype=accumulator_dtype(dtype), device=device)
    block_d = min(width & -width, 256)
    block = table.elements(device) // block_d
    first = 0
    for x in sources:
        end = first + x.shape[0]
        _prepare_kernel[(triton.cdiv(x.shape[0], block),)](
            x,
            values[first:end],
            None if factors is None else factors[first:end],
            inverse_norms[first:end],
            x.shape[0],
            dim,
            *x.stride(),
            NORMALIZE=normalize,
            TF32=kind == "tf32",
            WIDTH=width,
            BLOCK=block,
            BLOCK_D=block_d,
            **table.LAUNCH,
        )
        first = end
    return UnitRows(values, factors, inverse_norms, dim, kind)


def as_they_are(x: Tensor, dtype: torch.dtype, anchors: Tensor) -> UnitRows:
    """The rows x (n, D) of a queue, not normalised: x itself where the kernels can read it, else a copy in `dtype`.

    TF32 products take a rounded copy: reading and writing the queue once costs less than a walk over it.
    """
    width, kind = x.shape[1], table.kind(dtype, anchors.dtype, x.device)
    readable = x.dtype == dtype and x.is_contiguous() and width == table.padded_width(width)
    if readable and kind != "tf32" and x.data_ptr() % 16 == 0:
        return UnitRows(x, None, x.new_empty(0), width, kind)
    return prepare([x], dtype, anchors, normalize=False)


def product_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """The dtype in which rows of a and b are multiplied: their own, or float32 where they differ."""
    return a.dtype if a.dtype in (b.dtype, torch.float64) else torch.float32


def prepare_keys(x: Tensor, normalize: bool, dtype: torch.dtype, anchors: Tensor) -> tuple[UnitRows, bool]:
    """The rows of keys x (n, D), and whether they are read where they lie, so that they may hold Inf."""
    if normalize:
        return prepare([x], dtype, anchors), False
    keys = as_they_are(x, dtype, anchors)
    return keys, keys.factors is None and keys.values.data_ptr() == x.data_ptr()


def check_pairs(a: Tensor, b: Tensor) -> None:
    """ValueError unless a and b are (N, D) both, and not empty."""
    if a.dim() != 2 or a.shape != b.shape or not a.numel():
        raise ValueError(f"b: expected the shape (N, D) of a, not empty, got {tuple(a.shape)} and {tuple(b.shape)}")
