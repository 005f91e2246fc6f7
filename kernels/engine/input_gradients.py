"""Gradients of unit rows -> gradients of the inputs, through the normalisation, and of the scale.

With the unit row u = x / |x| and its gradient dU: dx = (dU - u <u, dU>) / |x|.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import LEAST_CLAMPED_INVERSE, LN2
from .precision import accumulator_dtype, gradient_unit, rounded, rounded_gradient
from .scale import Scale, log2_scale
from .tile import load_vector
from .unit_rows import UnitRows


@triton.jit
def _gradient(gradient, row, divisor, stride, count, accumulator: tl.constexpr):
    """The gradients (BLOCK,) of the losses of rows `row`: their own, or with stride 0 a share of one for all."""
    return tl.load(gradient + row * stride, mask=row < count, other=0.0).to(accumulator) / divisor


@triton.jit
def _pull_of_positive(
    g,  # (BLOCK,): gradients of the rows' losses
    gradient, shares,  # (rows,) or a number, (rows,) or None
    partner_factors,  # (rows,), or None
    row, partner, inside,  # (BLOCK,)
    divisor, stride, rows, accumulator: tl.constexpr, BOTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How strongly a row is pulled to its positive: g_i r_i; where BOTH are each other's positive g_p r_p as well."""
    pull = tl.zeros((BLOCK,), accumulator)
    pull += g if shares is None else g * tl.load(shares + row, mask=inside, other=0.0)
    if BOTH:
        of_partner = _gradient(gradient, partner, divisor, stride, rows, accumulator)
        pull += of_partner * tl.load(shares + partner, mask=inside, other=0.0)
    if partner_factors is not None:
        pull *= tl.load(partner_factors + partner, mask=inside, other=0.0)
    return pull


# A batch of another size is no reason to compile.
@triton.jit(do_not_specialize=["pieces", "first", "offset", "divisor"])
def _row_gradients_kernel(
    sums,  # (pieces, rows, SUM_WIDTH), or None
    values, factors, inverse_norms,  # UnitRows: (rows, WIDTH), (rows,) or None, (rows,) or None
    partners, partner_factors,  # (rows, WIDTH) or None, (rows,) or None
    shares, gradient, unit,  # (rows,) or None, (rows,) or a number or None, a number or None
    out,  # (count, dim)
    projections,  # (rows,) float64, or None
    scale, scale_tensor,  # see Scale
    pieces, first, count, rows, offset, dim, divisor, stride,
    BOTH: tl.constexpr, WIDTH: tl.constexpr, SUM_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rows first .. first + count of dx, from dU_i = s (weight_i sums_i - pull_i u_partner)."""
    accumulator: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    s = (log2_scale(scale, scale_tensor) * LN2).to(accumulator)
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = local < count
    row = first + local
    g = _gradient(gradient, row, divisor, stride, rows, accumulator) if gradient is not None else None
    # The sums were made with the gradients inside, in their unit, or with all gradients 1.
    weight = tl.zeros((BLOCK,), accumulator) + (g if unit is None else gradient_unit(unit).to(accumulator))
    partner = row + offset
    partner = tl.where(partner >= rows, partner - rows, partner)
    pull = tl.zeros((BLOCK,), accumulator)
    if partners is not None:
        pull = _pull_of_positive(
            g, gradient, shares, partner_factors, row, partner, inside, divisor, stride, rows, accumulator, BOTH, BLOCK
        )  # fmt: skip
    own = tl.zeros((BLOCK,), accumulator) + 1.0
    if factors is not None:
        own *= tl.load(factors + row, mask=inside, other=0.0)
    # Two passes along the row. Most rows are one chunk of columns, which is then read once, in the first pass.
    projection = tl.zeros((BLOCK,), accumulator)
    for depth in range(0, WIDTH, BLOCK_D):
        d, u = _unit_gradient(
            sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
            WIDTH, SUM_WIDTH, BLOCK, BLOCK_D,
        )  # fmt: skip
        projection += tl.sum(d * u, 1)
    if projections is not None:
        tl.store(projections + row, projection.to(tl.float64), mask=inside)
    if inverse_norms is None:
        inverse = tl.zeros((BLOCK,), accumulator) + 1.0
        projection *= 0.0
    else:
        inverse = tl.load(inverse_norms + row, mask=inside, other=0.0)
        # A row of norm below EPS was divided by EPS and not by its norm: its gradient is dU / EPS in every direction.
        projection = tl.where(inverse < LEAST_CLAMPED_INVERSE, projection, 0.0)
    for depth in range(0, WIDTH, BLOCK_D):
        d, u = _unit_gradient(
            sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
            WIDTH, SUM_WIDTH, BLOCK, BLOCK_D,
        )  # fmt: skip
        column = depth + tl.arange(0, BLOCK_D)
        dx = (d - u * projection[:, None]) * inverse[:, None]
        place = out + local.to(tl.int64)[:, None] * dim + column[None, :]
        mask = inside[:, None] & (column < dim)[None, :]
        tl.store(place, rounded_gradient(dx, inverse, out.dtype.element_ty), mask=mask)


@triton.jit
def _unit_gradient(
    sums, values, partners,  # as above
    weight, pull, own,  # (BLOCK,)
    s, pieces,
    row, partner,  # (BLOCK,)
    rows, inside, depth, dim,
    WIDTH: tl.constexpr, SUM_WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(dU_i, u_i) in the columns depth .. depth + BLOCK_D, (BLOCK, BLOCK_D) each."""
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
    projections: Tensor | None = None,
) -> None:
    """Fills out (m, D), the gradient of the inputs that became the rows first .. first + m of x.

    sums (pieces, n, any width) or (n, any width): weighted sums of the keys. They are multiplied by unit (0-D) where
    that is given, and else by the rows' gradients, which are gradient / divisor. partners: the positive of row i is
    their row (i + offset) mod n, and pulls with the share r_i of the row's gradient; shares (n,) are 1 if not given.
    both: the row is its positive's positive, and pulls it with the share of that row's gradient. projections (n,): gets
    <u_i, dU_i>.
    """
    block_d = min(x.width & -x.width, 256)
    pieces = 0 if sums is None else sums.shape[0] if sums.dim() == 3 else 1
    if partners is None and unit is not None:
        gradient = None  # it is inside the sums already, and is of other rows than these
    block = table.elements(out.device) // block_d
    _row_gradients_kernel[(triton.cdiv(out.shape[0], block),)](
        sums,
        x.values,
        x.factors,
        x.inverse_norms if x.inverse_norms.numel() else None,  # rows that were not normalised have none
        None if partners is None else partners.values,
        None if partners is None else partners.factors,
        shares,
        gradient,
        unit,
        out,
        projections,
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
def _scale_kernel(
    projections,  # (count,) float64
    out,  # a number
    scale, scale_tensor,  # see Scale
    count, share, B: tl.constexpr,
):  # fmt: skip
    """d loss / d s = share * the sum of <u_i, dU_i> / s: each dU_i is a gradient of s u_i, times s."""
    total = tl.zeros((B,), tl.float64)
    for first in range(0, count, B):
        total += load_vector(projections, first, count, B)
    s = log2_scale(scale, scale_tensor) * LN2
    tl.store(out, rounded(share * tl.sum(total, 0) / s, out.dtype.element_ty))


def scale_gradient(projections: Tensor, scale: Scale, share: float, tensor: Tensor) -> Tensor:
    """The gradient (0-D) of the scale `tensor`, in its dtype and on its device.

    projections (n,): <u_i, dU_i>. share: 1/2 where the rows count each pair from both sides, else 1.
    """
    out = torch.empty((), dtype=tensor.dtype, device=projections.device)
    _scale_kernel[(1,)](projections, out, *scale.arguments, projections.shape[0], share, B=1024, **table.LAUNCH)
    return out.to(tensor.device)


class Side(NamedTuple):
    """One of the two inputs of an operator."""

    given: Tensor  # (n, D)
    rows: UnitRows
    wanted: bool  # whether its gradient is asked for
    weighted: Callable[[], Tensor]  # computes the weighted sums (pieces, n, width) that its rows receive


def gradients_of_sides(
    sides: list[Side], scale: Scale, unit: Tensor, scale_tensor: Tensor | None, share: float
) -> tuple[list[Tensor], Tensor]:
    """(the gradients of the inputs, (0,) where not asked for; that of the scale). unit: of the weighted sums."""
    device = sides[0].given.device
    # The scale's gradient needs the dU of one side: a side whose gradient is computed anyway, if there is one.
    source = next((side for side in sides if side.wanted), sides[0])
    projections = None
    if scale_tensor is not None:
        projections = torch.empty(source.rows.count, dtype=torch.float64, device=device)
    out = []
    for side in sides:
        of_side = projections if side is source else None
        gradient = torch.empty(side.given.shape, dtype=side.given.dtype, device=device)
        if side.wanted or of_side is not None:
            row_gradients(gradient, side.rows, scale, side.weighted(), None, unit=unit, projections=of_side)
        out.append(gradient if side.wanted else side.given.new_empty(0))
    if scale_tensor is not None:
        return out, scale_gradient(projections, scale, share, scale_tensor)
    return out, torch.empty((), dtype=accumulator_dtype(sides[0].given.dtype), device=device)
