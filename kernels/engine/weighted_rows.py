"""The sums of rows of which every gradient consists, weighted by a softmax that is computed again from its log sums.

With P_ik = exp2(score_ik - log_sum_i), row i receives
    sum_k (g_i P_ik + g_k P_ki) u_k
over the columns k that count for it. The first term is there where the rows have a softmax of their own, the second
where the columns have. Losses of sigmoids have sigmoids in place of P. A program owns a block of rows and walks over
the columns, so that no atomics are needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import BY_SCALE, FIXED, HALF_UNIT, ONLINE, REST, SIGMOID
from .mask import Mask, kept, needs_mask
from .precision import accumulator_dtype, exponent_of, power_of_two, to_tf32
from .scale import Scale, allows_fixed_shift, log2_bias, log2_scale
from .tile import add_weighted_rows, dot, exp2_of, load_rows, load_vector, score_of, sigmoid_of, without_unit
from .unit_rows import UnitRows


class SavedSums(NamedTuple):
    """What one side's softmax is computed from again, and the gradients of that side's losses.

    unit: what the gradients are counted in, so that their products with weights stay in range; None for 1.
    """

    sums: Tensor  # (3, n), as the forward pass returned them (constants.SUMS_ROWS); not read for sigmoids
    gradients: Tensor | None = None  # (n,); None where all are 1
    unit: Tensor | None = None  # 0-D


@triton.jit
def _load_saved(
    sums, gradients, unit,  # see SavedSums
    shift, first, count, BLOCK: tl.constexpr, FORM: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    """(log sums, gradients) of a block of rows, (BLOCK,). Where TWO softmaxes share one shift, the second is g / Z."""
    log_sum = load_vector(sums, first, count, BLOCK)
    index = first + tl.arange(0, BLOCK)
    if gradients is None:
        gradient = tl.where(index < count, 1.0, 0.0).to(log_sum.dtype)
    else:
        gradient = load_vector(gradients, first, count, BLOCK)
        # This is not a division, which in float64 is a call, around which registers would spill.
        if unit is not None:
            gradient = (gradient.to(tl.float64) * power_of_two(-exponent_of(unit))).to(log_sum.dtype)
    if FORM != SIGMOID:
        rest = load_vector(sums + count * REST, first, count, BLOCK)
        if TWO and FORM == FIXED:
            rest += (log_sum.to(tl.float64) - shift.to(tl.float64)).to(rest.dtype)
        gradient *= tl.exp2(-rest)
    return log_sum, gradient


@triton.jit
def _weights(
    dots,  # (M, N), already times the factors of the columns
    scale,  # (M, 1): the scale times the factors of the rows
    shift,
    row_sums, row_gradients,  # (M,), or None
    column_sums, column_gradients,  # (N,), or None
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The weights (M, N) of a tile, where the ROWS, the COLUMNS or both have a softmax."""
    if FORM == SIGMOID:
        p = sigmoid_of(score_of(dots, scale, shift))
        return p * (row_gradients[:, None] if ROWS else column_gradients[None, :])
    elif ROWS and COLUMNS and FORM == FIXED:
        # One exponential serves both: E_ik (a_i + a_k) with a_i = g_i / Z_i.
        return exp2_of(dots, scale, shift) * (row_gradients[:, None] + column_gradients[None, :])
    elif ROWS and COLUMNS:
        return (
            exp2_of(dots, scale, row_sums[:, None]) * row_gradients[:, None]
            + exp2_of(dots, scale, column_sums[None, :]) * column_gradients[None, :]
        )
    elif ROWS:
        return exp2_of(dots, scale, row_sums[:, None]) * row_gradients[:, None]
    else:
        return exp2_of(dots, scale, column_sums[None, :]) * column_gradients[None, :]


@triton.jit
def _shift(s, bias, accumulator: tl.constexpr, FORM: tl.constexpr):
    """What is subtracted from all scores: |s|, or for sigmoids the negative bias."""
    return (-log2_bias(bias) if FORM == SIGMOID else tl.abs(s)).to(accumulator)


@triton.jit
def _weighted_rows_kernel(
    x, x_factors, x_sums, x_gradients,  # (rows, WIDTH), (rows,) or None, SavedSums or None
    y, y_factors, y_sums, y_gradients,  # (columns, WIDTH), (columns,) or None, SavedSums or None
    unit, bias,  # numbers, or None
    out,  # (pieces, rows, WIDTH)
    scale, scale_tensor,  # see Scale
    rows, columns, length,  # a piece has `length` columns
    half, row_ids, column_ids,  # see Mask
    MASK: tl.constexpr, FORM: tl.constexpr, HOST_FORM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program sums the rows of one piece of y for BLOCK_M rows of x."""
    s = log2_scale(scale, scale_tensor)
    if HOST_FORM == BY_SCALE:
        if allows_fixed_shift(s) != (FORM == FIXED):
            return
    ROWS: tl.constexpr = x_sums is not None
    COLUMNS: tl.constexpr = y_sums is not None
    accumulator: tl.constexpr = out.dtype.element_ty
    shift = _shift(s, bias, accumulator, FORM)
    row, piece = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    own = load_rows(x, row, rows, 0, WIDTH, BLOCK_M, WIDTH)
    own_scale = tl.zeros((BLOCK_M,), accumulator) + s.to(accumulator)
    if x_factors is not None:
        own_scale *= load_vector(x_factors, row, rows, BLOCK_M)
    row_sums, row_gradients = None, None
    if ROWS:
        row_sums, row_gradients = _load_saved(x_sums, x_gradients, unit, shift, row, rows, BLOCK_M, FORM, COLUMNS)
    result = tl.zeros((BLOCK_M, WIDTH), accumulator)
    end = tl.minimum((piece + 1) * length, columns)
    for column in range(piece * length, end, BLOCK_N):
        other = load_rows(y, column, columns, 0, WIDTH, BLOCK_N, WIDTH)
        dots = dot(own, tl.trans(other), PRECISION)
        factors = None
        if y_factors is not None:
            factors = load_vector(y_factors, column, columns, BLOCK_N)
            dots *= factors[None, :]
        column_sums, column_gradients = None, None
        if COLUMNS:
            column_sums, column_gradients = _load_saved(
                y_sums, y_gradients, unit, shift, column, columns, BLOCK_N, FORM, ROWS
            )  # fmt: skip
        weights = _weights(
            dots, own_scale[:, None], shift, row_sums, row_gradients, column_sums, column_gradients,
            ROWS, COLUMNS, FORM,
        )  # fmt: skip
        if needs_mask(row, rows, column, columns, half, MASK, BLOCK_M, BLOCK_N):
            keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK_M, BLOCK_N)
            weights = tl.where(keep, weights, 0.0)
        result = add_weighted_rows(result, weights, factors, other, PRECISION)
    i = row + tl.arange(0, BLOCK_M)
    place = (piece.to(tl.int64) * rows + i)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(out + place, without_unit(result, x.dtype.element_ty), mask=(i < rows)[:, None])


@triton.jit
def _weights_kernel(
    dots, weights,  # (chunk, columns) each
    x_factors, x_sums, x_gradients,  # (rows,) or None, SavedSums or None
    y_factors, y_sums, y_gradients,  # (columns,) or None, SavedSums or None
    unit, bias,  # numbers, or None
    scale, scale_tensor,  # see Scale
    first, rows, columns,
    half, row_ids, column_ids,  # see Mask
    unit_of_weights,
    MASK: tl.constexpr, FORM: tl.constexpr, HOST_FORM: tl.constexpr, TF32: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The dots of a chunk of rows, first .. first + chunk, -> their weights, as the kernel above computes them."""
    s = log2_scale(scale, scale_tensor)
    if HOST_FORM == BY_SCALE:
        if allows_fixed_shift(s) != (FORM == FIXED):
            return
    ROWS: tl.constexpr = x_sums is not None
    COLUMNS: tl.constexpr = y_sums is not None
    accumulator: tl.constexpr = dots.dtype.element_ty
    shift = _shift(s, bias, accumulator, FORM)
    # All programs lie along one axis: the others may have 65535 only, and a chunk over few columns has more blocks.
    blocks = tl.cdiv(columns, BLOCK_N)
    chunk_row, column = tl.program_id(0) // blocks * BLOCK_M, tl.program_id(0) % blocks * BLOCK_N
    row = first + chunk_row
    i, k = chunk_row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    # Every chunk but the last consists of whole blocks.
    inside = (first + i < rows)[:, None] & (k < columns)[None, :]
    place = i.to(tl.int64)[:, None] * columns + k[None, :]
    tile = tl.load(dots + place, mask=inside, other=0.0)
    own_scale = tl.zeros((BLOCK_M,), accumulator) + s.to(accumulator)
    if x_factors is not None:
        own_scale *= load_vector(x_factors, row, rows, BLOCK_M)
    row_sums, row_gradients, column_sums, column_gradients = None, None, None, None
    if ROWS:
        row_sums, row_gradients = _load_saved(x_sums, x_gradients, unit, shift, row, rows, BLOCK_M, FORM, COLUMNS)
    if COLUMNS:
        column_sums, column_gradients = _load_saved(
            y_sums, y_gradients, unit, shift, column, columns, BLOCK_N, FORM, ROWS
        )  # fmt: skip
    if y_factors is not None:
        factors = load_vector(y_factors, column, columns, BLOCK_N)
        tile *= factors[None, :]
    result = _weights(
        tile, own_scale[:, None], shift, row_sums, row_gradients, column_sums, column_gradients, ROWS, COLUMNS, FORM
    )
    keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK_M, BLOCK_N)
    result = tl.where(keep, result, 0.0)
    if y_factors is not None:
        result *= factors[None, :]
    result = (result * unit_of_weights).to(weights.dtype.element_ty)
    tl.store(weights + place, to_tf32(result) if TF32 else result, mask=inside)


def weighted_rows(
    x: UnitRows,
    y: UnitRows,
    scale: Scale,
    x_saved: SavedSums | None,
    y_saved: SavedSums | None,
    mask: Mask,
    host_form: int = ONLINE.value,
    bias: Tensor | None = None,
) -> Tensor:
    """The sums for every row of x over the rows of y, (pieces, n, width): their sum over the pieces is what is meant.

    host_form: FIXED or ONLINE, or BY_SCALE for both; FIXED only where both sides have a softmax. SIGMOID: one
    side has sigmoids, and the bias (0-D) is on the device.
    """
    forms = (FIXED.value, ONLINE.value) if host_form == BY_SCALE.value else (host_form,)
    run = _fused if x.width <= table.FUSED_WIDTH else _by_chunks
    options = {"MASK": mask.code, "HOST_FORM": host_form}
    unit = next((saved.unit for saved in (x_saved, y_saved) if saved and saved.unit is not None), None)
    none = (None, None)
    of_x = [x.factors, *(x_saved[:2] if x_saved else none)]
    of_y = [y.factors, *(y_saved[:2] if y_saved else none)]
    with _library_settings(x.values.device):
        return run(x, y, scale, of_x, of_y, (unit, bias), options, mask, forms)


def _fused(x, y, scale, of_x, of_y, unit_and_bias, options, mask, forms) -> Tensor:
    """Rows that fit a program's registers: products, weights and sums in one kernel."""
    tile = x.tile("weighted_rows")
    if mask.row_ids is not None:
        tile = tile.narrower()
    blocks = triton.cdiv(x.count, tile.rows)
    pieces, length = table.pieces(x.values.device, blocks, y.count, tile.columns)
    out = torch.empty((pieces, x.count, x.width), dtype=accumulator_dtype(x.values.dtype), device=x.values.device)
    for form in forms:
        _weighted_rows_kernel[(blocks, pieces)](
            x.values,
            *of_x,
            y.values,
            *of_y,
            *unit_and_bias,
            out,
            *scale.arguments,
            x.count,
            y.count,
            length,
            *mask.arguments,
            **options,
            FORM=form,
            WIDTH=x.width,
            BLOCK_M=tile.rows,
            BLOCK_N=tile.columns,
            PRECISION=table.precision(x.kind),
            **tile.options,
        )
    return out


@contextmanager
def _library_settings(device: torch.device) -> Iterator[None]:
    """Inside, PyTorch multiplies in the dtypes that it is given and sums float16 products in float32.

    Autocast would cast float32 operands. Where the caller allows float16 sums, torch.mm refuses a float32 result.
    """
    settings = torch.backends.cuda.matmul
    before = settings.allow_fp16_accumulation
    if before:
        settings.allow_fp16_accumulation = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before:
            settings.allow_fp16_accumulation = True


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (K, N) by PyTorch, with half types summed in float32.

    float32 products follow the caller's setting of TF32. Rows and weights of the kind "tf32" are TF32 numbers already,
    whose products are the same at either setting, so that the weights agree with the log sums of our own kernels.
    """
    if a.dtype in (torch.float32, torch.float64):
        return a @ b.to(a.dtype)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _by_chunks(x, y, scale, of_x, of_y, unit_and_bias, options, mask, forms) -> Tensor:
    """Rows too wide for a program's registers: for each chunk of rows two products by PyTorch, and our weights."""
    out = torch.empty((1, x.count, x.width), dtype=accumulator_dtype(x.values.dtype), device=x.values.device)
    tile = table.WEIGHTS_TILE
    chunk = max(tile.rows, table.CHUNK_ELEMENTS // y.count // tile.rows * tile.rows)
    # The interpreter truncates where devices round to bfloat16, so it keeps weights in the wider dtype.
    interpreted = table.architecture(x.values.device) == "interpreter"
    weights_dtype = out.dtype if interpreted else x.values.dtype
    in_half = weights_dtype == torch.float16
    unit_of_weights = HALF_UNIT.value if in_half else 1.0
    for first in range(0, x.count, chunk):
        rows = x.values[first : first + chunk]  # (chunk, width)
        dots = _product(rows, y.values.T)  # (chunk, columns)
        weights = torch.empty(dots.shape, dtype=weights_dtype, device=dots.device)
        for form in forms:
            _weights_kernel[(triton.cdiv(y.count, tile.columns) * triton.cdiv(len(rows), tile.rows),)](
                dots,
                weights,
                *of_x,
                *of_y,
                *unit_and_bias,
                *scale.arguments,
                first,
                x.count,
                y.count,
                *mask.arguments,
                unit_of_weights,
                **options,
                FORM=form,
                TF32=x.kind == "tf32",
                BLOCK_M=tile.rows,
                BLOCK_N=tile.columns,
                **tile.options,
            )
        out[0, first : first + chunk] = _product(weights, y.values)
    return out.div_(unit_of_weights) if in_half else out
