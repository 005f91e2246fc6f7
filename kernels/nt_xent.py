"""NT-Xent (ssl_fast.reference.nt_xent) on the GPU.

With the fixed shift |s| the exponentials E_ik = exp(s <u_i, u_k> - |s|) are symmetric: tiles above the
diagonal serve rows and columns, and E_ik (a_i + a_k) both terms of the gradient
    dU_i = s [ sum_{negatives k} E_ik (a_i + a_k) u_k - (g_i r_i + g_p(i) r_p(i)) u_p(i) ],
a_i = g_i / Z_i. Where exp(-2|s|) would be no normal number, `similarity_lse.walk` takes over. A
temperature on the device is not read here: both are launched, and the one without work ends at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs, reduction
from .attractions import Softmax, attractions
from .rows import Rows, pair_dots, prepare, wide
from .scale import Scale, scale_of
from .similarity_lse import Partial, cut, new_partial, walk
from .tiles import (
    BY_SCALE,
    FIXED,
    NOT_SELF_NOR_PARTNER,
    ONLINE,
    exp2_of,
    has_fixed_shift,
    kept,
    load_vector,
    log2_scale,
    needs_mask,
    tile_dots,
)

MASK = NOT_SELF_NOR_PARTNER.value


@triton.jit
def _triangle(program):
    """(row, column) of the program-th block on or above the diagonal, column by column."""
    column = ((tl.sqrt(8.0 * program.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root is rounded.
    column = tl.where(column * (column + 1) // 2 > program, column - 1, column)
    column = tl.where((column + 1) * (column + 2) // 2 <= program, column + 1, column)
    return program - column * (column + 1) // 2, column


@triton.jit
def _exp_sums_kernel(
    rows, factors, positive, sums, ranks, totals, scale, temperature, count, half,
    LAUNCHED: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """A square of GROUP x GROUP tiles: sums of its rows to slot `column` and of its columns to slot `row`.

    Every row gets one sum in every slot. Squares on the diagonal hold each pair twice and sum rows only.
    """
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        if not has_fixed_shift(s):
            return
    accumulator: tl.constexpr = tl.float64 if rows.dtype.element_ty == tl.float64 else tl.float32
    scale_of_dots, shift = s.to(accumulator), tl.abs(s).to(accumulator)
    sign = tl.where(s < 0, -1.0, 1.0).to(accumulator)
    row_square, column_square = _triangle(tl.program_id(0))
    diagonal = row_square == column_square
    member = tl.arange(0, GROUP)[:, None]
    column_sums = tl.zeros((GROUP, BLOCK), accumulator)
    if ranks is not None:
        column_ranks = tl.zeros((GROUP, BLOCK), tl.int32)
        total = tl.zeros((BLOCK,), tl.float64)
    blocks = tl.cdiv(count, BLOCK)
    for i in range(tl.minimum(GROUP, blocks - row_square * GROUP)):
        row = (row_square * GROUP + i) * BLOCK
        row_sums = tl.zeros((BLOCK,), accumulator)
        row_scale = tl.zeros((BLOCK,), accumulator) + scale_of_dots
        if factors is not None:
            row_factors = load_vector(factors, row, count, BLOCK)
            row_scale *= row_factors
        if ranks is not None:
            row_ranks = tl.zeros((BLOCK,), tl.int32)
            row_threshold = load_vector(positive, row, count, BLOCK) * sign
        for j in range(tl.minimum(GROUP, blocks - column_square * GROUP)):
            column = (column_square * GROUP + j) * BLOCK
            dots = tile_dots(rows, row, count, rows, column, count, WIDTH, BLOCK, BLOCK, BLOCK_D, PRECISION)
            scaled = dots
            if factors is not None:
                column_factors = load_vector(factors, column, count, BLOCK)
                scaled = dots * column_factors[None, :]
            e = exp2_of(scaled, row_scale[:, None], shift)
            masked = needs_mask(row, count, column, count, half, MASK, BLOCK, BLOCK)
            if masked:
                e = tl.where(kept(row, count, column, count, half, MASK, BLOCK, BLOCK), e, 0.0)
            row_sums += tl.sum(e, 1)
            column_sums += tl.where(member == j, tl.sum(e, 0)[None, :], 0.0)
            if ranks is not None:
                keep = kept(row, count, column, count, half, MASK, BLOCK, BLOCK)
                row_ranks += tl.sum((keep & (scaled * sign > row_threshold[:, None])).to(tl.int32), 1)
                similarity = tl.where(keep, scaled, 0.0)
                if factors is not None:
                    similarity *= row_factors[:, None]
                    dots *= row_factors[:, None]
                total += tl.sum(similarity, 1).to(tl.float64)
                column_threshold = load_vector(positive, column, count, BLOCK) * sign
                above = tl.sum((keep & (dots * sign > column_threshold[None, :])).to(tl.int32), 0)
                column_ranks += tl.where(member == j, above[None, :], 0)
        index = row + tl.arange(0, BLOCK)
        place = column_square.to(tl.int64) * count + index
        tl.store(sums + place, row_sums.to(tl.float64), mask=index < count)
        if ranks is not None:
            tl.store(ranks + place, row_ranks, mask=index < count)
    index = (column_square * GROUP + member) * BLOCK + tl.arange(0, BLOCK)[None, :]
    place = row_square.to(tl.int64) * count + index
    off_diagonal = (index < count) & (diagonal == 0)
    tl.store(sums + place, column_sums.to(tl.float64), mask=off_diagonal)
    if ranks is not None:
        tl.store(ranks + place, column_ranks, mask=off_diagonal)
        tl.store(totals + tl.program_id(0), tl.sum(total, 0) * tl.where(diagonal, 1.0, 2.0))


def _exp_sums(rows: Rows, scale: Scale, positive: Tensor, partial: Partial, tile: configs.Tile, group: int) -> None:
    """Fills the sums (slots, n) of all rows over their negatives, with the fixed shift."""
    squares = triton.cdiv(triton.cdiv(rows.count, tile.rows), group)
    _exp_sums_kernel[(squares * (squares + 1) // 2,)](
        rows.values,
        rows.factors,
        positive,
        partial.sums,
        partial.ranks,
        partial.totals,
        *scale.arguments,
        rows.count,
        rows.count // 2,
        LAUNCHED=scale.form,
        GROUP=group,
        WIDTH=rows.width,
        BLOCK=tile.rows,
        BLOCK_D=tile.depth,
        PRECISION=configs.precision(rows.kind),
        MASK=MASK,
        **tile.options,
    )


def _squares(rows: Rows, tile: configs.Tile) -> tuple[int, int]:
    """(tiles of a side, squares of a side): of more squares than that, the sums would outgrow the rows themselves."""
    blocks = triton.cdiv(rows.count, tile.rows)
    group = triton.next_power_of_2(triton.cdiv(blocks, configs.slots(rows.values.device)))
    return group, triton.cdiv(blocks, group)


def _check_views(z1: Tensor, z2: Tensor) -> None:
    if z1.dim() != 2 or z1.shape != z2.shape or not z1.numel():
        raise ValueError(f"z2: expected the shape (N, D) of z1, not empty, got {tuple(z1.shape)} and {tuple(z2.shape)}")


def nt_xent(
    z1: Tensor, z2: Tensor, temperature: float, temperature_tensor: Tensor | None, reduction_: int, return_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent (csrc/ops.cpp). sums: see reduction.SAVED."""
    _check_views(z1, z2)
    reduction.check_reduction(reduction_)
    with torch.cuda.device_of(z1):
        scale = scale_of(temperature, temperature_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)
        half = z1.shape[0]
        tile = rows.tile("exp_sums")
        # Of one depth: both kernels' dots are compared with the same positives'.
        walk_tile = rows.tile("walk")._replace(depth=tile.depth)
        positive = pair_dots(rows, rows, tile, half)
        group, squares = _squares(rows, tile)
        share = cut(rows, rows, walk_tile)
        partial = new_partial(
            max(squares, share.pieces),
            max(squares * (squares + 1) // 2, share.blocks * share.pieces),
            rows,
            with_ranks=return_stats,
        )
        if scale.form != ONLINE.value:
            _exp_sums(rows, scale, positive, partial, tile, group)
        if scale.form != FIXED.value:
            walk(rows, rows, scale, positive, partial, walk_tile, MASK, half, launched=scale.form)
        slots = squares, share.pieces
        return reduction.losses(partial, positive, rows.factors, scale, slots, scale.form, reduction_, 2 * half - 2)


def nt_xent_backward(
    gradient: Tensor,
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    temperature_tensor: Tensor | None,
    reduction_: int,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::nt_xent_backward (csrc/ops.cpp)."""
    _check_views(z1, z2)
    half, count = z1.shape[0], 2 * z1.shape[0]
    reduction.check_sums(sums, count, z1)
    gradient, divisor, unit = reduction.upstream(gradient, reduction_, count)
    with torch.cuda.device_of(z1):
        scale = scale_of(temperature, temperature_tensor, z1)
        rows = prepare([z1, z2], z1.dtype, z1)
        softmax = Softmax(sums, None if unit is None else gradient, unit)
        attracted = attractions(rows, rows, scale, softmax, softmax, MASK, half, scale.form)
        wants_temperature = temperature_tensor is not None
        along = torch.empty(count, dtype=torch.float64, device=z1.device) if wants_temperature else None
        gradients = (
            torch.empty(z1.shape, dtype=z1.dtype, device=z1.device),
            torch.empty(z2.shape, dtype=z2.dtype, device=z2.device),
        )
        for first, out in zip((0, half), gradients, strict=True):
            reduction.row_gradients(
                out, rows, scale, attracted, gradient, divisor, unit, rows, sums[1], half, True, first, along
            )  # fmt: skip
        if wants_temperature:
            return *gradients, reduction.temperature_gradient(along, scale, 0.5, temperature_tensor)
        return *gradients, torch.empty((), dtype=wide(z1.dtype), device=z1.device)
