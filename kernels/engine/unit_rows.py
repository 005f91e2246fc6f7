"""Rows of any float dtype and strides -> rows that the tile kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import EPS
from .precision import rounded, to_tf32, wide


class UnitRows(NamedTuple):
    """(n, width) contiguous rows, columns beyond the embeddings' dimension zero.

    float32 and float64: unit rows, of the kind "tf32" rounded to TF32. bfloat16 and float16, also for products in
    float32 on tensor cores: the rows themselves times a power of two, for unit rows would be rounded again; `factors`
    (n) makes their dots those of unit rows.
    inverse_norms (n): 1 / max(|x|, EPS) of the rows as given; empty for rows taken as they are.
    """

    values: Tensor
    factors: Tensor | None
    inverse_norms: Tensor
    dim: int
    kind: str  # of the products (table.kind)

    @property
    def count(self) -> int:
        return self.values.shape[0]

    @property
    def width(self) -> int:
        return self.values.shape[1]

    def tile(self, kernel: str) -> table.Tile:
        return table.tile(kernel, self.values.device, self.kind, self.width)


@triton.jit
def _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D: tl.constexpr):
    column = depth + tl.arange(0, BLOCK_D)
    place = x + row.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * dim_stride
    return tl.load(place, mask=(row < count)[:, None] & (column < dim)[None, :], other=0.0)


@triton.jit
def largest_power(largest):
    """2^-e with 2^e <= largest < 2^(e + 1): exact to multiply by. For all numbers, NaN and Inf too, it is finite."""
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
    """1 / max(|x|, EPS) less the factor `power`, by which x was multiplied before its squares were summed; float64."""
    norm = tl.sqrt(squares.to(tl.float64))
    least = power.to(tl.float64) * EPS
    inverse = 1.0 / tl.where(norm <= least, least, norm)  # a NaN norm stays
    return tl.where(norm < float("inf"), inverse, float("nan"))


@triton.jit
def _prepare_kernel(
    x, values, factors, inverse_norms, count, dim, row_stride, dim_stride,
    NORMALIZE: tl.constexpr, TF32: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    # The arithmetic's dtype: at least that of x, whose largest numbers float32 may not hold.
    double: tl.constexpr = x.dtype.element_ty == tl.float64 or values.dtype.element_ty == tl.float64
    accumulator: tl.constexpr = tl.float64 if double else tl.float32
    largest = tl.zeros((BLOCK,), accumulator)
    for depth in range(0, dim, BLOCK_D):
        v = _load(x, row, count, depth, dim, row_stride, dim_stride, BLOCK_D).to(accumulator)
        largest = tl.maximum(largest, tl.max(tl.abs(v), 1))
    power = largest_power(largest)
    # Squares in float64: the norm is then exact to the last digit, for n D products in all.
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
        # As they are. Ordinary rows keep their values; others are scaled so that any dtype holds them.
        # All that float16 holds: a factor could carry its weights out of range.
        least_power: tl.constexpr = 1e-5 if values.dtype.element_ty == tl.float16 else 1e-3
        ordinary = (power > least_power) & (power < 1e3)
        scaled = tl.where(ordinary, 1.0 / power, 1.0).to(tl.float64)
        factor = tl.where(ordinary, 1.0, 1.0 / power).to(tl.float64)
        # Left as it is, Inf could make a score of -Inf, and a finite loss.
        factor = tl.where(squares < float("inf"), factor, float("nan"))
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


def prepare(
    sources: list[Tensor], dtype: torch.dtype, anchors: Tensor, normalize: bool = True, on_tensor_cores: bool = True
) -> UnitRows:
    """The rows of all sources (n, D), one below the other, for products in `dtype`: a launch each.

    anchors: the queries or views, whose dtype says what kind of products it is. on_tensor_cores: False for rows that
    enter no matrix product, which keep all of float32's digits.
    """
    kind = table.kind(dtype, anchors.dtype, sources[0].device)
    if kind == "tf32" and not on_tensor_cores:
        kind = "ieee"
    count, dim = sum(x.shape[0] for x in sources), sources[0].shape[1]
    width = table.padded_width(dim)
    device = sources[0].device
    values = torch.empty((count, width), dtype=dtype, device=device)
    # bfloat16 and float16 are TF32 numbers too, so that such rows enter TF32 products as they are.
    kept = kind == "half" or (kind == "tf32" and sources[0].dtype in (torch.float16, torch.bfloat16))
    factors = torch.empty(count, dtype=torch.float32, device=device) if kept else None
    inverse_norms = torch.empty(count if normalize else 0, dtype=wide(dtype), device=device)
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
    """The rows of a queue: in place where the tile kernels can read them so, else a copy in `dtype`.

    For TF32 a rounded copy is made: reading and writing the queue once costs less than a walk over it.
    """
    width, kind = x.shape[1], table.kind(dtype, anchors.dtype, x.device)
    readable = x.dtype == dtype and x.is_contiguous() and width == table.padded_width(width)
    if readable and kind != "tf32" and x.data_ptr() % 16 == 0:
        return UnitRows(x, None, x.new_empty(0), width, kind)
    return prepare([x], dtype, anchors, normalize=False)


def product_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    """What rows are multiplied in: their own dtype, or float32 where they differ."""
    return a.dtype if a.dtype in (b.dtype, torch.float64) else torch.float32


def keys_of(x: Tensor, normalize: bool, dtype: torch.dtype, anchors: Tensor) -> tuple[UnitRows, bool]:
    """The rows of keys, and whether they are read as they lie and may hold Inf."""
    if normalize:
        return prepare([x], dtype, anchors), False
    keys = as_they_are(x, dtype, anchors)
    return keys, keys.factors is None and keys.values.data_ptr() == x.data_ptr()


def check_pairs(a: Tensor, b: Tensor) -> None:
    if a.dim() != 2 or a.shape != b.shape or not a.numel():
        raise ValueError(f"b: expected the shape (N, D) of a, not empty, got {tuple(a.shape)} and {tuple(b.shape)}")
