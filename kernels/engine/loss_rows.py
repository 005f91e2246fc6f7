"""Sums of the tile kernels -> losses and statistics, or log-sum-exps; and the checks of what a backward pass is given.

With R_i the sum over the negatives and Z_i = R_i + E_ip, E_ip = exp2(score of the positive): the loss of a row is
log(1 + R_i / E_ip), which is exact near 0 too, and r_i = R_i / Z_i is what the gradients need of the positive.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuning import table
from .constants import BY_SCALE, FIXED, LN2, LOG_SUM, MEAN, NONE, REST, SHARE, SUM, SUMS_ROWS
from .online_softmax import PartialSums
from .precision import accumulator_dtype
from .scale import Scale, allows_fixed_shift, log2_scale
from .tile import log2_of_1_plus

BLOCK = 64  # rows of a program


@triton.jit
def _merged(
    sums, maxima, ranks,  # (slots, count), see PartialSums
    shift, fixed, slots,
    row, inside,  # (BLOCK,)
    count, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """(log2 of the sum of all slots, rank) of every row, (BLOCK,) each. fixed: every maximum is the shift."""
    highest = tl.zeros((BLOCK,), tl.float64) + tl.where(fixed, shift.to(tl.float64), float("-inf"))
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
    return highest + tl.log2(total), rank


@triton.jit
def _form(s, fixed_slots, online_slots, HOST_FORM: tl.constexpr):
    """(whether the shift is fixed, how many slots were filled)."""
    if HOST_FORM == BY_SCALE:
        fixed = allows_fixed_shift(s)
    else:
        fixed = HOST_FORM == FIXED
    return fixed, tl.where(fixed, fixed_slots, online_slots)


@triton.jit
def _store_log_sum(saved, rows, row, log_sum, accumulator: tl.constexpr, inside):
    """Stores float64 log sums (BLOCK,) in saved (3, rows): as rounded numbers, and what rounding took from them."""
    tl.store(saved + rows * LOG_SUM + row, log_sum, mask=inside)
    tl.store(saved + rows * REST + row, log_sum - log_sum.to(accumulator).to(tl.float64), mask=inside)


@triton.jit
def _store_statistics(out, ranks, rank, loss, similarity, inside):
    """Stores a block's sums: of the losses and, where ranks are counted, of top-1 hits, top-5 hits and similarities."""
    tl.store(out, tl.sum(tl.where(inside, loss, 0.0), 0))
    if ranks is not None:
        # A NaN row has no rank. `loss - loss` would not do: fused with the product before it, it is not always 0.
        nan_or_zero = tl.where(tl.abs(loss) < float("inf"), 0.0, float("nan"))
        top1 = (rank < 1).to(tl.float64) + nan_or_zero
        top5 = (rank < 5).to(tl.float64) + nan_or_zero
        tl.store(out + 1, tl.sum(tl.where(inside, top1, 0.0), 0))
        tl.store(out + 2, tl.sum(tl.where(inside, top5, 0.0), 0))
        tl.store(out + 3, tl.sum(tl.where(inside, similarity, 0.0), 0))


@triton.jit
def _store_key_means(
    key_means,  # (count, dim)
    weighted, maxima,  # (slots, count, WIDTH), (slots, count)
    log_sum, row, inside,  # (BLOCK,)
    slots, count, dim, accumulator: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merges the weighted sums of the slots: V_i, the sum over the negatives of exp2(score - log_sum) * key."""
    for depth in range(0, WIDTH, BLOCK_D):
        column = depth + tl.arange(0, BLOCK_D)
        mean = tl.zeros((BLOCK, BLOCK_D), accumulator)
        for piece in range(slots):
            index = piece * tl.cast(count, tl.int64) + row
            maximum = tl.load(maxima + index, mask=inside, other=0.0).to(tl.float64)
            factor = tl.exp2(maximum - log_sum).to(accumulator)
            part = tl.load(weighted + index[:, None] * WIDTH + column[None, :], mask=inside[:, None], other=0.0)
            mean += factor[:, None] * part
        place = key_means + row.to(tl.int64)[:, None] * dim + column[None, :]
        tl.store(place, mean, mask=inside[:, None] & (column < dim)[None, :])


@triton.jit(do_not_specialize=["fixed_slots", "online_slots"])  # counts of another batch are no reason to compile
def _loss_kernel(
    sums, maxima, ranks, weighted,  # see PartialSums
    positive,  # (count,): similarities
    losses,  # (count,), or None
    saved,  # (3, count), see SUMS_ROWS
    key_means,  # (count, dim), or None
    partials,  # (programs, 4), or None
    scale, scale_tensor,  # see Scale
    fixed_slots, online_slots, count, dim,
    HOST_FORM: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A program computes the losses of BLOCK rows, what the backward pass needs of them, and their statistics."""
    s = log2_scale(scale, scale_tensor)
    fixed, slots = _form(s, fixed_slots, online_slots, HOST_FORM)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    accumulator: tl.constexpr = positive.dtype.element_ty
    shift = tl.abs(s).to(accumulator)
    log_negatives, rank = _merged(sums, maxima, ranks, shift, fixed, slots, row, inside, count, BLOCK, BLOCK_S)
    # The scale is rounded as the tiles rounded it: the score of a key that equals the positive is then the same here.
    similarity = tl.load(positive + row, mask=inside, other=0.0).to(tl.float64)
    score = s.to(accumulator).to(tl.float64) * similarity
    x = log_negatives - score
    # log2(1 + 2^x), the loss in powers of two.
    loss = tl.where(x > 0, x, 0.0) + log2_of_1_plus(tl.exp2(tl.where(x > 0, -x, x)))
    log_sum = score + loss
    loss *= LN2
    if losses is not None:
        tl.store(losses + row, loss, mask=inside)
    _store_log_sum(saved, count, row, log_sum, accumulator, inside)
    tl.store(saved + count * SHARE + row, 1.0 / (1.0 + tl.exp2(-x)), mask=inside)
    if partials is not None:
        _store_statistics(partials + tl.program_id(0) * 4, ranks, rank, loss, similarity, inside)
    if key_means is not None:
        _store_key_means(
            key_means, weighted, maxima, log_sum, row, inside, slots, count, dim, accumulator, WIDTH, BLOCK, BLOCK_D
        )  # fmt: skip


@triton.jit(do_not_specialize=["fixed_slots", "online_slots"])
def _lse_kernel(
    sums, maxima, ranks,  # see PartialSums
    lse,  # (count,) float64
    saved,  # (3, count), see SUMS_ROWS
    counts,  # (count,) int64, or None
    scale, scale_tensor,  # see Scale
    fixed_slots, online_slots, count,
    HOST_FORM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A program computes the log-sum-exps of BLOCK rows."""
    s = log2_scale(scale, scale_tensor)
    fixed, slots = _form(s, fixed_slots, online_slots, HOST_FORM)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    accumulator: tl.constexpr = saved.dtype.element_ty
    shift = tl.abs(s).to(accumulator)
    log_sum, rank = _merged(sums, maxima, ranks, shift, fixed, slots, row, inside, count, BLOCK, BLOCK_S)
    tl.store(lse + row, log_sum * LN2, mask=inside)
    # No pair counts for a row with a log sum of -Inf. Its weights are masked, whatever finite number is saved.
    _store_log_sum(saved, count, row, tl.where(log_sum == float("-inf"), 0.0, log_sum), accumulator, inside)
    tl.store(saved + count * SHARE + row, 0.0, mask=inside)
    if counts is not None:
        tl.store(counts + row, rank, mask=inside)


@triton.jit(do_not_specialize=["blocks", "parts", "count", "negatives"])
def _sum_kernel(
    partials,  # (blocks, 4) float64: sums of losses, top-1 hits, top-5 hits, similarities of the positives
    totals,  # (parts,) float64: sums of the similarities of the negatives
    loss,  # a number, or None
    stats,  # (4,): top-1, top-5, mean similarity of the positives, of the negatives; or None
    blocks, parts, count, negatives, MEAN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """One program adds the blocks' losses and statistics, in their order."""
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
        # The loss is the first entry of partials and no entry of stats, so the others move up by one.
        tl.store(stats + which - 1, result / count, mask=which > 0)
        tl.store(stats + 3, mean)


def losses(
    partial: PartialSums,
    positive: Tensor,
    scale: Scale,
    slots: tuple[int, int],
    host_form: int,
    reduction: int,
    negatives: int,
    key_means: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, stats, sums) as the operators return them. Fills key_means (n, D) where it is given.

    positive (n,): similarities. slots: how many slots of `partial` the fixed form fills, and how many the online form.
    negatives: how many each row has.
    """
    count, dtype, device = positive.shape[0], positive.dtype, positive.device
    loss = torch.empty(count if reduction == NONE else (), dtype=dtype, device=device)
    saved = torch.empty((SUMS_ROWS, count), dtype=dtype, device=device)
    stats = torch.empty(0 if partial.ranks is None else 4, dtype=dtype, device=device)
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
        loss if reduction == NONE else None,
        saved,
        key_means,
        partials,
        *scale.arguments,
        *slots,
        count,
        0 if key_means is None else key_means.shape[1],
        HOST_FORM=host_form,
        WIDTH=width,
        BLOCK=BLOCK,
        BLOCK_S=16,
        BLOCK_D=min(width, 64),
        **table.LAUNCH,
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
            **table.LAUNCH,
        )
    return loss, stats, saved


def log_sum_exp(
    partial: PartialSums,
    scale: Scale,
    slots: tuple[int, int],
    host_form: int,
    lse: Tensor,
    saved: Tensor,
    counts: Tensor | None,
) -> None:
    """Fills lse (n,) float64, saved (3, n), whose shares are 0, and counts (n,) with the ranks where it is given.

    slots: how many slots of `partial` the fixed form fills, and how many the online form.
    """
    _lse_kernel[(triton.cdiv(lse.shape[0], BLOCK),)](
        *partial[:3],
        lse,
        saved,
        counts,
        *scale.arguments,
        *slots,
        lse.shape[0],
        HOST_FORM=host_form,
        BLOCK=BLOCK,
        BLOCK_S=16,
        **table.LAUNCH,
    )


def upstream(gradient: Tensor, reduction: int, count: int) -> tuple[Tensor, int, Tensor | None]:
    """(gradient, divisor, unit): the gradients of `count` loss rows are gradient / divisor.

    Where each row has a gradient of its own, (n,), unit (0-D) is the largest magnitude among them; else it is None.
    """
    expected = (count,) if reduction == NONE else ()
    if reduction not in (NONE, MEAN, SUM) or tuple(gradient.shape) != expected:
        raise ValueError(f"gradient: expected the shape of the loss of {count} rows, got {tuple(gradient.shape)}")
    if reduction == NONE:
        gradient = gradient.contiguous()
        return gradient, 1, gradient.abs().amax()
    return gradient, count if reduction == MEAN else 1, None


def checked_positive(positive: Tensor | None, of: Tensor) -> Tensor | None:
    """The similarities (n,) of the positives of the rows `of`, as the tile kernels read them."""
    if positive is None:
        return None
    if positive.shape != of.shape[:1]:
        raise ValueError(f"positive: expected a similarity for each of {of.shape[0]} rows, got {tuple(positive.shape)}")
    return positive.detach().to(accumulator_dtype(of.dtype)).contiguous()


def check_sums(sums: Tensor, count: int, of: Tensor) -> None:
    """ValueError unless sums is (3, count), as the forward pass of the inputs `of` returned it."""
    check_saved("sums", sums, (SUMS_ROWS, count), of)


def check_saved(name: str, x: Tensor, shape: tuple, of: Tensor) -> None:
    """ValueError unless the argument x is what the forward pass of the inputs `of` returned."""
    if tuple(x.shape) != shape or x.dtype != accumulator_dtype(of.dtype) or not x.is_contiguous():
        raise ValueError(f"{name}: expected what the forward pass returned, of shape {shape}, got {tuple(x.shape)}")


def check_reduction(reduction: int) -> None:
    """ValueError for a code that is no reduction."""
    if reduction not in (NONE, MEAN, SUM):
        raise ValueError(f"reduction: expected 0, 1 or 2, got {reduction}")
