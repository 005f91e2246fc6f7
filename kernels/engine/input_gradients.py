"""Sums of rows -> gradients of the inputs, through the normalisation, and of the temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import LEAST_CLAMPED, LN2
from .precision import gradient_unit, narrowed, rounded, wide
from .scale import Scale, log2_scale
from .tile import load_vector
from .unit_rows import UnitRows


@triton.jit
def _gradient(gradient, row, divisor, stride, count, accumulator: tl.constexpr):
    """The gradient of each row's loss: its own, or the mean's or sum's share."""
    return tl.load(gradient + row * stride, mask=row < count, other=0.0).to(accumulator) / divisor


# A batch of another size is no reason to compile.
@triton.jit(do_not_specialize=["pieces", "first", "offset", "divisor"])
def _row_gradients_kernel(
    sums, values, factors, inverse_norms, partners, partner_factors, shares, gradient, unit, out, along, scale,
    temperature, pieces, first, count, rows, offset, dim, divisor, stride,
    BOTH: tl.constexpr, WIDTH: tl.constexpr, SUM_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows first .. first + count of dx from dU_i = s (weight_i sums_i - pull_i u_partner)."""
    accumulator: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    s = (log2_scale(scale, temperature) * LN2).to(accumulator)
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = local < count
    row = first + local
    g = _gradient(gradient, row, divisor, stride, rows, accumulator) if gradient is not None else None
    # Sums were made with the gradients inside, in their unit, or with all of them 1.
    weight = tl.zeros((BLOCK,), accumulator) + (g if unit is None else gradient_unit(unit).to(accumulator))
    partner = row + offset
    partner = tl.where(partner >= rows, partner - rows, partner)
    pull = tl.zeros((BLOCK,), accumulator)
    if partners is not None:
        pull += g if shares is None else g * tl.load(shares + row, mask=inside, other=0.0)
        if BOTH:
            of_partner = _gradient(gradient, partner, divisor, stride, rows, accumulator)
            pull += of_partner * tl.load(shares + partner, mask=inside, other=0.0)
        if partner_factors is not None:
            pull *= tl.load(partner_factors + partner, mask=inside, other=0.0)
    own = tl.zeros((BLOCK,), accumulator) + 1.0
    if factors is not None:
        own *= tl.load(factors + row, mask=inside, other=0.0)
    # One chunk of columns in most cases: then everything is read once, in the first of two passes.
    projection = tl.zeros((BLOCK,), accumulator)
    for depth in range(0, WIDTH, BLOCK_D):
        d, u = _unit_gradient(
            sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
            WIDTH, SUM_WIDTH, BLOCK, BLOCK_D,
        )  # fmt: skip
        projection += tl.sum(d * u, 1)
    if along is not None:
        tl.store(along + row, projection.to(tl.float64), mask=inside)
    if inverse_norms is None:
        inverse = tl.zeros((BLOCK,), accumulator) + 1.0
        projection *= 0.0
    else:
        inverse = tl.load(inverse_norms + row, mask=inside, other=0.0)
        # Where the norm was clamped, the row is x / EPS and its direction counts too.
        projection = tl.where(inverse < LEAST_CLAMPED, projection, 0.0)
    for depth in range(0, WIDTH, BLOCK_D):
        d, u = _unit_gradient(
            sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
            WIDTH, SUM_WIDTH, BLOCK, BLOCK_D,
        )  # fmt: skip
        column = depth + tl.arange(0, BLOCK_D)
        dx = (d - u * projection[:, None]) * inverse[:, None]
        place = out + local.to(tl.int64)[:, None] * dim + column[None, :]
        tl.store(place, narrowed(dx, inverse, out.dtype.element_ty), mask=inside[:, None] & (column < dim)[None, :])


@triton.jit
def _unit_gradient(
    sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
    WIDTH: tl.constexpr, SUM_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(dU_i, u_i) of some columns."""
    column = depth + tl.arange(0, BLOCK_D)[None, :]
    mask = inside[:, None]
    d = tl.zeros((BLOCK, BLOCK_D), pull.dtype)
    if sums is not None:
        for piece in range(pieces):
            place = (piece * tl.cast(rows, tl.int64) + row)[:, None] * SUM_WIDTH + column
            d += tl.load(sums + place, mask=mask & (column < SUM_WIDTH), other=0.0)
        d *= weight[:, None]
    if partners is not None:
        other = tl.load(partners + partner.to(tl.int64)[:, None] * WIDTH + column, mask=mask, other=0.0)
        d -= other.to(pull.dtype) * pull[:, None]
    u = tl.load(values + row.to(tl.int64)[:, None] * WIDTH + column, mask=mask, other=0.0).to(pull.dtype)
    return d * s, u * own[:, None]


def row_gradients(
    out: Tensor,
    x: UnitRows,
    scale: Scale,
    sums: Tensor | None,
    gradient: Tensor | None,
    divisor: int = 1,
    unit: Tensor | None = None,
    partners: UnitRows | None = None,
    shares: Tensor | None = None,
    offset: int = 0,
    both: bool = False,
    first: int = 0,
    along: Tensor | None = None,
) -> None:
    """Fills out (m, D), the gradient of the inputs first .. first + m that became rows of x.

    sums (pieces, n, any width) or (n, any width): of the keys; times unit where that is given, times the rows'
    gradients where not. partners, shares: the positive of row i is row (i + offset) mod n and pulls with the share
    r_i of the row's gradient, all of it without shares; both: with the partner's too. along (n): gets <u_i, dU_i>.
    """
    block_d = min(x.width & -x.width, 256)
    pieces = 0 if sums is None else sums.shape[0] if sums.dim() == 3 else 1
    if partners is None and unit is not None:
        gradient = None  # inside the sums, and not of these rows
    block = table.elements(out.device) // block_d
    _row_gradients_kernel[(triton.cdiv(out.shape[0], block),)](
        sums,
        x.values,
        x.factors,
        x.inverse_norms if x.inverse_norms.numel() else None,  # none of rows taken as they are
        None if partners is None else partners.values,
        None if partners is None else partners.factors,
        shares,
        gradient,
        unit,
        out,
        along,
        *scale.arguments,
        pieces,
        first,
        out.shape[0],
        x.count,
        offset,
        x.dim,
        divisor,
        0 if gradient is None or gradient.dim() == 0 else 1,
        BOTH=both,
        WIDTH=x.width,
        SUM_WIDTH=0 if sums is None else sums.shape[-1],
        BLOCK=block,
        BLOCK_D=block_d,
        **table.LAUNCH,
    )


@triton.jit
def _temperature_kernel(along, out, scale, temperature, count, share, B: tl.constexpr):
    """d loss / d temperature = -s * share * sum of <u_i, dU_i>."""
    total = tl.zeros((B,), tl.float64)
    for first in range(0, count, B):
        total += load_vector(along, first, count, B)
    s = log2_scale(scale, temperature) * LN2
    tl.store(out, rounded(-s * share * tl.sum(total, 0), out.dtype.element_ty))


def temperature_gradient(along: Tensor, scale: Scale, share: float, temperature: Tensor) -> Tensor:
    """In the dtype and on the device of the temperature. share: 1/2 where each pair was counted from both sides."""
    out = torch.empty((), dtype=temperature.dtype, device=along.device)
    _temperature_kernel[(1,)](along, out, *scale.arguments, along.shape[0], share, B=1024, **table.LAUNCH)
    return out.to(temperature.device)


class Side(NamedTuple):
    """An input, its rows, whether its gradient is asked for, and what computes the sums that its rows get."""

    given: Tensor
    rows: UnitRows
    wanted: bool
    weighted: Callable[[], Tensor]


def of_sides(
    sides: list[Side], scale: Scale, unit: Tensor, temperature: Tensor | None, share: float
) -> tuple[list[Tensor], Tensor]:
    """(gradients of the inputs, empty where not asked for; of the temperature), of sums in this unit."""
    device = sides[0].given.device
    # One side's dU is enough for the temperature: one that is computed anyway, if there is one.
    source = next((side for side in sides if side.wanted), sides[0])
    along = torch.empty(source.rows.count, dtype=torch.float64, device=device) if temperature is not None else None
    out = []
    for side in sides:
        with_temperature = along is not None and side is source
        gradient = torch.empty(side.given.shape, dtype=side.given.dtype, device=device)
        if side.wanted or with_temperature:
            row_gradients(
                gradient, side.rows, scale, side.weighted(), None, unit=unit, along=along if with_temperature else None
            )  # fmt: skip
        out.append(gradient if side.wanted else side.given.new_empty(0))
    if temperature is not None:
        return out, temperature_gradient(along, scale, share, temperature)
    return out, torch.empty((), dtype=wide(sides[0].given.dtype), device=device)
