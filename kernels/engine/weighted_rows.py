"""The sums of rows that every gradient consists of, weighted by the softmax, which is computed again.

With P_ik = exp2(score_ik - log_sum_i), row i receives
    sum_k (g_i P_ik + g_k P_ki) u_k
over the k that the mask leaves: the first term where the rows have a softmax of their own, the second
where the others have. Losses of sigmoids have those in place of P. A program owns a block of rows and walks over the
others: no atomics.
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
from .constants import BY_SCALE, FIXED, HALF_UNIT, ONLINE, SIGMOID
from .mask import Mask, kept, needs_mask
from .precision import exponent_of, power_of_two, to_tf32, wide
from .scale import Scale, has_fixed_shift, log2_bias, log2_scale
from .tile import add_weighted, dot, exp2_of, in_units, load_rows, load_vector, score_of, sigmoid_of
from .unit_rows import UnitRows


class SavedSums(NamedTuple):
    """sums (3, n): the sums that a forward pass returned, of sigmoids not read. gradients (n): of the rows' losses;
    None where all are 1.

    unit: 0-D, what the gradients are counted in, so that their products stay in range; None for 1.
    """

    sums: Tensor
    gradients: Tensor | None = None
    unit: Tensor | None = None


@triton.jit
def _load_softmax(
    log_sums, gradients, unit, shift, first, count, BLOCK: tl.constexpr, FORM: tl.constexpr, TWO: tl.constexpr
):  # fmt: skip
    """(log_sums, gradients) of a block; for two softmaxes over one shift, (-, gradients / Z)."""
    log_sum = load_vector(log_sums, first, count, BLOCK)
    index = first + tl.arange(0, BLOCK)
    if gradients is None:
        gradient = tl.where(index < count, 1.0, 0.0).to(log_sum.dtype)
    else:
        gradient = load_vector(gradients, first, count, BLOCK)
        # Not a division: in float64 that is a call, around which registers spill.
        if unit is not None:
            gradient = (gradient.to(tl.float64) * power_of_two(-exponent_of(unit))).to(log_sum.dtype)
    if FORM != SIGMOID:
        # What rounding took from the log of the sum.
        rest = load_vector(log_sums + 2 * count, first, count, BLOCK)
        if TWO and FORM == FIXED:
            rest += (log_sum.to(tl.float64) - shift.to(tl.float64)).to(rest.dtype)
        gradient *= tl.exp2(-rest)
    return log_sum, gradient


@triton.jit
def _weights(
    dots, scale, shift, row_sums, row_gradients, column_sums, column_gradients,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """The weights of a tile; scale (rows, 1) and column factors are already in the dots' units."""
    if FORM == SIGMOID:
        p = sigmoid_of(score_of(dots, scale, shift))
        return p * (row_gradients[:, None] if ROWS else column_gradients[None, :])
    elif ROWS and COLUMNS and FORM == FIXED:
        # One exponential serves both: E_ik (a_i + a_k).
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
    """What is subtracted from the scores of a form that has one shift for all."""
    return (-log2_bias(bias) if FORM == SIGMOID else tl.abs(s)).to(accumulator)


@triton.jit
def _weighted_rows_kernel(
    x, x_factors, x_log_sums, x_gradients, y, y_factors, y_log_sums, y_gradients, unit, bias, out, scale, temperature,
    rows, columns, length, half, row_ids, column_ids,
    MASK: tl.constexpr, FORM: tl.constexpr, LAUNCHED: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        if has_fixed_shift(s) != (FORM == FIXED):
            return
    ROWS: tl.constexpr = x_log_sums is not None
    COLUMNS: tl.constexpr = y_log_sums is not None
    accumulator: tl.constexpr = out.dtype.element_ty
    shift = _shift(s, bias, accumulator, FORM)
    row, piece = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    own = load_rows(x, row, rows, 0, WIDTH, BLOCK_M, WIDTH)
    own_scale = tl.zeros((BLOCK_M,), accumulator) + s.to(accumulator)
    if x_factors is not None:
        own_scale *= load_vector(x_factors, row, rows, BLOCK_M)
    row_sums, row_gradients = None, None
    if ROWS:
        row_sums, row_gradients = _load_softmax(
            x_log_sums, x_gradients, unit, shift, row, rows, BLOCK_M, FORM, COLUMNS
        )  # fmt: skip
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
            column_sums, column_gradients = _load_softmax(
                y_log_sums, y_gradients, unit, shift, column, columns, BLOCK_N, FORM, ROWS
            )  # fmt: skip
        weights = _weights(
            dots, own_scale[:, None], shift, row_sums, row_gradients, column_sums, column_gradients,
            ROWS, COLUMNS, FORM,
        )  # fmt: skip
        if needs_mask(row, rows, column, columns, half, MASK, BLOCK_M, BLOCK_N):
            keep = kept(row, rows, column, columns, half, row_ids, column_ids, MASK, BLOCK_M, BLOCK_N)
            weights = tl.where(keep, weights, 0.0)
        result = add_weighted(result, weights, factors, other, PRECISION)
    i = row + tl.arange(0, BLOCK_M)
    place = (piece.to(tl.int64) * rows + i)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(out + place, in_units(result, x.dtype.element_ty), mask=(i < rows)[:, None])


@triton.jit
def _weights_kernel(
    dots, weights, x_factors, x_log_sums, x_gradients, y_factors, y_log_sums, y_gradients, unit, bias, scale,
    temperature, first, rows, columns, half, row_ids, column_ids, unit_of_weights,
    MASK: tl.constexpr, FORM: tl.constexpr, LAUNCHED: tl.constexpr, TF32: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Products (chunk, columns) of rows first .. -> their weights: the element-wise part of the kernel above."""
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        if has_fixed_shift(s) != (FORM == FIXED):
            return
    ROWS: tl.constexpr = x_log_sums is not None
    COLUMNS: tl.constexpr = y_log_sums is not None
    accumulator: tl.constexpr = dots.dtype.element_ty
    shift = _shift(s, bias, accumulator, FORM)
    # One axis of programs: the others may have 65535, and a chunk over few columns has more blocks of rows.
    blocks = tl.cdiv(columns, BLOCK_N)
    chunk_row, column = tl.program_id(0) // blocks * BLOCK_M, tl.program_id(0) % blocks * BLOCK_N
    row = first + chunk_row
    i, k = chunk_row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    # Chunks are whole blocks, but for the last.
    inside = (first + i < rows)[:, None] & (k < columns)[None, :]
    place = i.to(tl.int64)[:, None] * columns + k[None, :]
    tile = tl.load(dots + place, mask=inside, other=0.0)
    own_scale = tl.zeros((BLOCK_M,), accumulator) + s.to(accumulator)
    if x_factors is not None:
        own_scale *= load_vector(x_factors, row, rows, BLOCK_M)
    row_sums, row_gradients, column_sums, column_gradients = None, None, None, None
    if ROWS:
        row_sums, row_gradients = _load_softmax(
            x_log_sums, x_gradients, unit, shift, row, rows, BLOCK_M, FORM, COLUMNS
        )  # fmt: skip
    if COLUMNS:
        column_sums, column_gradients = _load_softmax(
            y_log_sums, y_gradients, unit, shift, column, columns, BLOCK_N, FORM, ROWS
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
    x_softmax: SavedSums | None,
    y_softmax: SavedSums | None,
    mask: Mask,
    launched: int = ONLINE.value,
    bias: Tensor | None = None,
) -> Tensor:
    """(pieces, n, width), whose sum over pieces is every row's sum over the rows of y.

    launched: which forms, FIXED or ONLINE, or BY_SCALE for both; FIXED only where both have a softmax. SIGMOID: of
    one side, with a bias on the device.
    """
    forms = (FIXED.value, ONLINE.value) if launched == BY_SCALE.value else (launched,)
    run = _fused if x.width <= table.FUSED_WIDTH else _by_chunks
    options = {"MASK": mask.code, "LAUNCHED": launched}
    unit = next((softmax.unit for softmax in (x_softmax, y_softmax) if softmax and softmax.unit is not None), None)
    one_sided = (None, None)
    sides = [x.factors, *(x_softmax[:2] if x_softmax else one_sided)]
    others = [y.factors, *(y_softmax[:2] if y_softmax else one_sided)]
    with _library_settings(x.values.device):
        return run(x, y, scale, sides, others, (unit, bias), options, mask, forms)


def _fused(x, y, scale, of_x, of_y, unit_and_bias, options, mask, forms) -> Tensor:
    tile = x.tile("weighted_rows")
    if mask.row_ids is not None:
        tile = tile.narrower()
    blocks = triton.cdiv(x.count, tile.rows)
    pieces, length = table.pieces(x.values.device, blocks, y.count, tile.columns)
    out = torch.empty((pieces, x.count, x.width), dtype=wide(x.values.dtype), device=x.values.device)
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
    """Library products take the dtypes that they are given, and float16 is summed in float32.

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
    """a @ b by the library, half types summed in float32.

    float32 follows the caller's setting. Rows and weights of the kind "tf32" are TF32 numbers already, whose products
    are the same by either setting: the weights agree with the log-sum-exps, which our own kernels computed.
    """
    if a.dtype in (torch.float32, torch.float64):
        return a @ b.to(a.dtype)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


def _by_chunks(x, y, scale, of_x, of_y, unit_and_bias, options, mask, forms) -> Tensor:
    """Rows too wide for a program's registers: two library products and one element-wise pass, a chunk of rows each."""
    out = torch.empty((1, x.count, x.width), dtype=wide(x.values.dtype), device=x.values.device)
    tile = table.WEIGHTS_TILE
    chunk = max(tile.rows, table.CHUNK_ELEMENTS // y.count // tile.rows * tile.rows)
    # The interpreter cuts bfloat16 off where devices round.
    interpreted = table.architecture(x.values.device) == "interpreter"
    weights_dtype = out.dtype if interpreted else x.values.dtype
    in_half = weights_dtype == torch.float16
    unit_of_weights = HALF_UNIT.value if in_half else 1.0
    for first in range(0, x.count, chunk):
        rows = x.values[first : first + chunk]
        dots = _product(rows, y.values.T)
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
