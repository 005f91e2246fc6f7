"""Sums of the tile kernels -> losses and statistics, and sums of rows -> gradients of the inputs.

With R_i the sum over the negatives and Z_i = R_i + exp2(score of the positive): the loss of a row is
log(1 + R_i / E_ip), exact near 0 too, and r_i = R_i / Z_i is what the gradients need of the positive.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .attractions import gradient_unit
from .rows import Rows, wide
from .scale import Scale
from .similarity_lse import Partial
from .tiles import BY_SCALE, FIXED, LN2, has_fixed_shift, load_vector, log2_scale, narrowed, rounded

NONE, MEAN, SUM = 0, 1, 2  # as in checks.REDUCTIONS
SAVED = 3  # rows of what the operators return as sums: log2 Z_i, r_i, and what rounding took from log2 Z_i
BLOCK = 64


@triton.jit
def _log2_of_1_plus(x):
    """log2(1 + x) of x in [0, 1] in float64, to the last digits of x near 0 too."""
    w = 1.0 + x
    # What rounding took from 1 + x, given back as the ratio of x to what is left of it.
    return tl.where(w == 1.0, x, tl.log(w) * (x / tl.where(w == 1.0, 1.0, w - 1.0))) * (1 / LN2)


@triton.jit
def _loss_kernel(
    sums, maxima, ranks, weighted, positive, factors, losses, saved, key_means, partials, scale, temperature,
    fixed_slots, online_slots, count, dim,
    LAUNCHED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    s = log2_scale(scale, temperature)
    if LAUNCHED == BY_SCALE:
        fixed = has_fixed_shift(s)
    else:
        fixed = LAUNCHED == FIXED
    slots = tl.where(fixed, fixed_slots, online_slots)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    highest = tl.zeros((BLOCK,), tl.float64) + tl.where(
        fixed, tl.abs(s).to(positive.dtype.element_ty).to(tl.float64), float("-inf")
    )
    slot = tl.arange(0, BLOCK_S)[:, None]
    if not fixed:
        for first in range(0, slots, BLOCK_S):
            place = (first + slot).to(tl.int64) * count + row[None, :]
            mask = (first + slot < slots) & inside[None, :]
            maximum = tl.load(maxima + place, mask=mask, other=float("-inf")).to(tl.float64)
            highest = tl.maximum(highest, tl.max(maximum, 0))
    total = tl.zeros((BLOCK,), tl.float64)
    rank = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, slots, BLOCK_S):
        place = (first + slot).to(tl.int64) * count + row[None, :]
        mask = (first + slot < slots) & inside[None, :]
        part = tl.load(sums + place, mask=mask, other=0.0)
        if not fixed:
            maximum = tl.load(maxima + place, mask=mask, other=float("-inf")).to(tl.float64)
            part *= tl.exp2(maximum - highest[None, :])
        total += tl.sum(part, 0)
        if ranks is not None:
            rank += tl.sum(tl.load(ranks + place, mask=mask, other=0), 0)
    similarity = tl.load(positive + row, mask=inside, other=0.0)
    accumulator: tl.constexpr = similarity.dtype
    if factors is not None:
        similarity *= tl.load(factors + row, mask=inside, other=0.0)
    similarity = similarity.to(tl.float64)
    # The scale as the tiles used it, rounded: then what should cancel does.
    score = s.to(accumulator).to(tl.float64) * similarity
    x = highest + tl.log2(total) - score
    # log2(1 + 2^x), the loss in powers of two.
    loss = tl.where(x > 0, x, 0.0) + _log2_of_1_plus(tl.exp2(tl.where(x > 0, -x, x)))
    whole = score + loss
    loss *= LN2
    if losses is not None:
        tl.store(losses + row, loss, mask=inside)
    # A sum of |s| = 1000 is rounded by 1e-4 in float32, and so were all weights: the rest is kept too.
    tl.store(saved + row, whole, mask=inside)
    tl.store(saved + 2 * count + row, whole - whole.to(accumulator).to(tl.float64), mask=inside)
    tl.store(saved + count + row, 1.0 / (1.0 + tl.exp2(-x)), mask=inside)
    if partials is not None:
        out = partials + tl.program_id(0) * 4
        tl.store(out, tl.sum(tl.where(inside, loss, 0.0), 0))
        if ranks is not None:
            nan_or_zero = loss - loss  # a NaN row has no rank
            top1 = (rank < 1).to(tl.float64) + nan_or_zero
            top5 = (rank < 5).to(tl.float64) + nan_or_zero
            tl.store(out + 1, tl.sum(tl.where(inside, top1, 0.0), 0))
            tl.store(out + 2, tl.sum(tl.where(inside, top5, 0.0), 0))
            tl.store(out + 3, tl.sum(tl.where(inside, similarity, 0.0), 0))
    if key_means is not None:
        for depth in range(0, WIDTH, BLOCK_D):
            column = depth + tl.arange(0, BLOCK_D)
            mean = tl.zeros((BLOCK, BLOCK_D), accumulator)
            for piece in range(slots):
                index = piece * tl.cast(count, tl.int64) + row
                maximum = tl.load(maxima + index, mask=inside, other=0.0).to(tl.float64)
                factor = tl.exp2(maximum - whole).to(accumulator)
                part = tl.load(weighted + index[:, None] * WIDTH + column[None, :], mask=inside[:, None], other=0.0)
                mean += factor[:, None] * part
            place = key_means + row.to(tl.int64)[:, None] * dim + column[None, :]
            tl.store(place, mean, mask=inside[:, None] & (column < dim)[None, :])


@triton.jit
def _sum_kernel(partials, totals, loss, stats, blocks, parts, count, negatives, MEAN: tl.constexpr, B: tl.constexpr):
    """One program: losses and statistics of the blocks, added in their order."""
    sums = tl.zeros((B, 4), tl.float64)
    column = tl.arange(0, 4)[None, :]
    for first in range(0, blocks, B):
        block = first + tl.arange(0, B)[:, None]
        used = (block < blocks) & ((stats is not None) | (column == 0))
        sums += tl.load(partials + block * 4 + column, mask=used, other=0.0)
    result = tl.sum(sums, 0)
    which = tl.arange(0, 4)
    if loss is not None:
        total = tl.sum(tl.where(which == 0, result, 0.0), 0)
        tl.store(loss, total / count if MEAN else total)
    if stats is not None:
        similarity = tl.zeros((B,), tl.float64)
        for first in range(0, parts, B):
            part = first + tl.arange(0, B)
            similarity += tl.load(totals + part, mask=part < parts, other=0.0)
        mean = tl.sum(similarity, 0) / (tl.cast(count, tl.float64) * negatives)
        mean = tl.where(negatives > 0, mean, float("nan"))
        # partials hold the loss first; stats end with the mean of the negatives.
        tl.store(stats + which - 1, result / count, mask=which > 0)
        tl.store(stats + 3, mean)


def losses(
    partial: Partial,
    positive: Tensor,
    factors: Tensor | None,
    scale: Scale,
    slots: tuple[int, int],
    launched: int,
    reduction: int,
    negatives: int,
    key_means: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, stats, sums) as the operators return them; fills key_means (n, D) where given.

    slots: how many of the partial sums there are with a fixed shift, and online. negatives: of one row.
    """
    count, dtype, device = positive.shape[0], positive.dtype, positive.device
    rows = torch.empty(count, dtype=dtype, device=device) if reduction == NONE else None
    saved = torch.empty((SAVED, count), dtype=dtype, device=device)
    stats = torch.empty(0 if partial.ranks is None else 4, dtype=dtype, device=device)
    loss = rows if reduction == NONE else torch.empty((), dtype=dtype, device=device)
    blocks = triton.cdiv(count, BLOCK)
    reduced = reduction != NONE or partial.ranks is not None
    partials = torch.empty((blocks, 4), dtype=torch.float64, device=device) if reduced else None
    width = 16 if partial.weighted is None else partial.weighted.shape[2]
    _loss_kernel[(blocks,)](
        partial.sums,
        partial.maxima,
        partial.ranks,
        partial.weighted,
        positive,
        factors,
        rows,
        saved,
        key_means,
        partials,
        *scale.arguments,
        *slots,
        count,
        0 if key_means is None else key_means.shape[1],
        LAUNCHED=launched,
        WIDTH=width,
        BLOCK=BLOCK,
        BLOCK_S=16,
        BLOCK_D=min(width, 64),
        **configs.LAUNCH,
    )
    if reduced:
        _sum_kernel[(1,)](
            partials,
            partial.totals,
            None if reduction == NONE else loss,
            None if partial.ranks is None else stats,
            blocks,
            0 if partial.totals is None else partial.totals.numel(),
            count,
            negatives,
            MEAN=reduction == MEAN,
            B=256,
            **configs.LAUNCH,
        )
    return loss, stats, saved


@triton.jit
def _gradient(gradient, row, divisor, stride, count, accumulator: tl.constexpr):
    """The gradient of each row's loss: its own, or the mean's or sum's share."""
    return tl.load(gradient + row * stride, mask=row < count, other=0.0).to(accumulator) / divisor


@triton.jit
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
        pull += g * tl.load(shares + row, mask=inside, other=0.0)
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
        projection = tl.where(inverse < 0.9999999e12, projection, 0.0)
    for depth in range(0, WIDTH, BLOCK_D):
        d, u = _unit_gradient(
            sums, values, partners, weight, pull, own, s, pieces, row, partner, rows, inside, depth, dim,
            WIDTH, SUM_WIDTH, BLOCK, BLOCK_D,
        )  # fmt: skip
        column = depth + tl.arange(0, BLOCK_D)
        dx = (d - u * projection[:, None]) * inverse[:, None]
        place = out + local.to(tl.int64)[:, None] * dim + column[None, :]
        tl.store(place, narrowed(dx, out.dtype.element_ty), mask=inside[:, None] & (column < dim)[None, :])


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
    x: Rows,
    scale: Scale,
    sums: Tensor | None,
    gradient: Tensor,
    divisor: int,
    unit: Tensor | None = None,
    partners: Rows | None = None,
    shares: Tensor | None = None,
    offset: int = 0,
    both: bool = False,
    first: int = 0,
    along: Tensor | None = None,
) -> None:
    """Fills out (m, D), the gradient of the inputs first .. first + m that became rows of x.

    sums (pieces, n, any width) or (n, any width): of the keys; times unit where that is given, times the rows'
    gradients where not. partners, shares: the positive of row i is row (i + offset) mod n and pulls with the share
    r_i of the row's gradient; both: with the partner's too. along (n): gets <u_i, dU_i>.
    """
    block_d = min(x.width & -x.width, 256)
    pieces = 0 if sums is None else sums.shape[0] if sums.dim() == 3 else 1
    if partners is None and unit is not None:
        gradient = None  # inside the sums, and not of these rows
    block = configs.elements(out.device) // block_d
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
        **configs.LAUNCH,
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
    _temperature_kernel[(1,)](along, out, *scale.arguments, along.shape[0], share, B=1024, **configs.LAUNCH)
    return out.to(temperature.device)


def upstream(gradient: Tensor, reduction: int, count: int) -> tuple[Tensor, int, Tensor | None]:
    """(gradient, divisor, unit) of the rows' losses; unit: the largest, where each row has its own."""
    expected = (count,) if reduction == NONE else ()
    if reduction not in (NONE, MEAN, SUM) or tuple(gradient.shape) != expected:
        raise ValueError(f"gradient: expected the shape of the loss of {count} rows, got {tuple(gradient.shape)}")
    if reduction == NONE:
        gradient = gradient.contiguous()
        return gradient, 1, gradient.abs().amax()
    return gradient, count if reduction == MEAN else 1, None


def check_sums(sums: Tensor, count: int, of: Tensor) -> None:
    check_saved("sums", sums, (SAVED, count), of)


def check_saved(name: str, x: Tensor, shape: tuple, of: Tensor) -> None:
    """What a backward is given must be what the forward pass of these inputs returned."""
    if tuple(x.shape) != shape or x.dtype != wide(of.dtype) or not x.is_contiguous():
        raise ValueError(f"{name}: expected what the forward pass returned, of shape {shape}, got {tuple(x.shape)}")


def check_reduction(reduction: int) -> None:
    if reduction not in (NONE, MEAN, SUM):
        raise ValueError(f"reduction: expected 0, 1 or 2, got {reduction}")
