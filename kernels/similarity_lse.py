"""Log-sum-exps over similarities, ln sum_k exp(s <u_i, v_k>) over the pairs that a mask leaves, on the GPU.

With P the softmax of the rows, Q of the columns, and W_ik = g_i P_ik + h_k Q_ik: dU_i = s sum_k W_ik v_k and
dV_k = s sum_i W_ik u_i. Rows with each other, and rows and columns at once, take one pass over tiles
(`symmetric_tiles`) where the shift |s| can be that of every row; else, and for rows alone, there are walks over keys
(`online_softmax`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .engine import input_gradients, loss_rows
from .engine.constants import ALL, FIXED, IDS_DIFFER, IDS_EQUAL, IDS_EQUAL_NOT_SELF, NONE, ONLINE, SUMS_ROWS
from .engine.mask import Mask
from .engine.online_softmax import PartialSums, new_partial_sums, online_softmax, split
from .engine.precision import accumulator_dtype
from .engine.scale import Scale, scale_of
from .engine.symmetric_tiles import TileSums, squares, symmetric_tiles
from .engine.unit_rows import UnitRows, prepare, prepare_keys, product_dtype
from .engine.weighted_rows import SavedSums, weighted_rows


def _checked_mask(
    a: Tensor, b: Tensor | None, ids_a: Tensor | None, ids_b: Tensor | None, code: int, columns: bool
) -> Mask:
    """The mask that an operator's arguments ask for; ValueError where they do not fit each other."""
    if a.dim() != 2 or not a.numel():
        raise ValueError(f"a: expected the shape (N, D), not empty, got {tuple(a.shape)}")
    if b is not None and (b.dim() != 2 or b.shape[1] != a.shape[1] or not b.numel()):
        raise ValueError(f"b: expected the shape (M, D) for a {tuple(a.shape)}, got {tuple(b.shape)}")
    if not ALL.value <= code <= IDS_EQUAL.value:
        raise ValueError(f"mask: expected 0 to 3, got {code}")
    if b is None and columns:
        raise ValueError("columns: expected b to be given")
    with_ids = code in (IDS_DIFFER.value, IDS_EQUAL.value)
    for name, ids, of, wanted in (("ids_a", ids_a, a, with_ids), ("ids_b", ids_b, b, with_ids and b is not None)):
        if (ids is None) == wanted or (wanted and (ids.dtype != torch.int64 or ids.shape != of.shape[:1])):
            raise ValueError(f"{name}: expected int64 of as many rows where the mask has ids, else none")
    if not with_ids:
        return Mask(code)
    ids_a = ids_a.contiguous()
    if b is not None:
        return Mask(code, 0, ids_a, ids_b.contiguous())
    # Among rows with each other a row would have an id equal to its own: it does not count.
    return Mask(IDS_EQUAL_NOT_SELF.value if code == IDS_EQUAL.value else code, 0, ids_a, ids_a)


def _form(scale: Scale, b: Tensor | None, columns: bool, normalize_a: bool, normalize_b: bool) -> int:
    """The form of the softmax: the fixed shift is for unit rows, with each other or with rows and columns at once."""
    unit_rows = normalize_a and (b is None or normalize_b)
    return scale.form if unit_rows and (b is None or columns) else ONLINE.value


def _of_rows_and_columns(sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Sums (3, rows) and (3, others) of rows and columns, each contiguous in the memory of sums (3, rows + others)."""
    flat = sums.view(-1)
    return flat[: SUMS_ROWS * rows].view(SUMS_ROWS, rows), flat[SUMS_ROWS * rows :].view(SUMS_ROWS, -1)


def similarity_lse(
    a: Tensor,
    b: Tensor | None,
    ids_a: Tensor | None,
    ids_b: Tensor | None,
    mask_code: int,
    normalize_a: bool,
    normalize_b: bool,
    columns: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    positive: Tensor | None,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_lse of a (N, D) and b (M, D), or a with itself: (lse, column_lse, ranks, sums).

    lse: (N,) float64. column_lse: (M,) where `columns` asks for it, else (0,). ranks: with the positives' similarities
    `positive` (N,), how many pairs rank above them, (1, N), or (2, N) of rows and columns; else (0, N). sums: (3, N)
    and (3, M) or (3, 0), see `_of_rows_and_columns`.
    """
    mask = _checked_mask(a, b, ids_a, ids_b, mask_code, columns)
    positive = loss_rows.checked_positive(positive, a)
    if positive is not None and columns and b.shape[0] != a.shape[0]:
        raise ValueError(f"positive: expected as many columns as rows, got {b.shape[0]} and {a.shape[0]}")
    rows, others = a.shape[0], b.shape[0] if columns else 0
    lse, column_lse = (torch.empty(count, dtype=torch.float64, device=a.device) for count in (rows, others))
    sums = torch.empty((SUMS_ROWS, rows + others), dtype=accumulator_dtype(a.dtype), device=a.device)
    ranks = torch.empty((0 if positive is None else 1 + columns, rows), dtype=torch.int64, device=a.device)
    with torch.cuda.device_of(a):
        scale = scale_of(scale_number, scale_tensor, a)
        form = _form(scale, b, columns, normalize_a, normalize_b)
        dtype = a.dtype if b is None else product_dtype(a, b)
        u = v = prepare([a], dtype, a, normalize_a)
        may_hold_inf = False
        if columns:
            v = prepare([b], dtype, a, normalize_b)
        elif b is not None:
            v, may_hold_inf = prepare_keys(b, normalize_b, dtype, a)
        partials, slots = _partial_sums(u, None if b is None else v, scale, form, mask, positive, may_hold_inf, columns)
        outs = zip(partials, slots, (lse, column_lse), _of_rows_and_columns(sums, rows), strict=False)
        for i, (partial, of, out, saved) in enumerate(outs):
            loss_rows.log_sum_exp(partial, scale, of, form, out, saved, None if positive is None else ranks[i])
        return lse, column_lse, ranks, sums


def _partial_sums(
    u: UnitRows,
    v: UnitRows | None,
    scale: Scale,
    form: int,
    mask: Mask,
    positive: Tensor | None,
    may_hold_inf: bool,
    columns: bool,
) -> tuple[list[PartialSums], list[tuple[int, int]]]:
    """The sums of the rows u over v, None for u itself, and of the columns where asked for.

    With each comes how many of its slots the fixed form fills, and how many the online form.
    """
    tile = u.tile("symmetric_tiles")
    # Both kernels compare their dots with the same positives', so their tiles have the same depth.
    walk_tile = u.tile("online_softmax")._replace(depth=tile.depth)
    keys = u if v is None else v
    directions = [(u, keys, mask)] + [(keys, u, mask.transposed())] * columns
    _, down, along = squares(u, keys, tile)
    fixed = [0, 0] if form == ONLINE.value else [along, down]
    slots = [(most, split(x, y, walk_tile).pieces) for most, (x, y, _) in zip(fixed, directions, strict=False)]
    partials = [
        new_partial_sums(max(of), 0, x, positive is not None) for of, (x, *_) in zip(slots, directions, strict=True)
    ]
    if form != ONLINE.value:
        symmetric_tiles(u, v, scale, mask, positive, TileSums(*partials), tile)
    if form != FIXED.value:
        for (x, y, of), partial in zip(directions, partials, strict=True):
            online_softmax(x, y, scale, positive, partial, walk_tile, of, may_hold_inf, form)
    return partials, slots


def similarity_lse_backward(
    gradient: Tensor,
    column_gradient: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    ids_a: Tensor | None,
    ids_b: Tensor | None,
    mask_code: int,
    normalize_a: bool,
    normalize_b: bool,
    scale_number: float,
    scale_tensor: Tensor | None,
    sums: Tensor,
    a_gradient: bool,
    b_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator ssl_fast::similarity_lse_backward: the gradients of a, b and the scale.

    gradient (N,) and column_gradient (M,): of the log-sum-exps. sums: as the forward pass returned them. a_gradient,
    b_gradient: whether the gradients of a and b are asked for; they are (0,) if not.
    """
    columns = column_gradient is not None
    mask = _checked_mask(a, b, ids_a, ids_b, mask_code, columns)
    loss_rows.check_sums(sums, a.shape[0] + (b.shape[0] if columns else 0), a)
    gradient, _, unit = loss_rows.upstream(gradient.to(sums.dtype), NONE, a.shape[0])
    of_rows, of_columns = _of_rows_and_columns(sums, a.shape[0])
    other = None
    with torch.cuda.device_of(a):
        if columns:
            column_gradient, _, largest = loss_rows.upstream(column_gradient.to(sums.dtype), NONE, b.shape[0])
            unit = torch.maximum(unit, largest)
            other = SavedSums(of_columns, column_gradient, unit)
        own = SavedSums(of_rows, gradient, unit)
        scale = scale_of(scale_number, scale_tensor, a)
        form = _form(scale, b, columns, normalize_a, normalize_b)
        dtype = a.dtype if b is None else product_dtype(a, b)
        u = prepare([a], dtype, a, normalize_a)
        if b is None:
            sides = [input_gradients.Side(a, u, a_gradient, lambda: weighted_rows(u, u, scale, own, own, mask, form))]
        else:
            v = prepare([b], dtype, a, normalize_b) if b_gradient else prepare_keys(b, normalize_b, dtype, a)[0]
            flipped = mask.transposed()
            sides = [
                input_gradients.Side(a, u, a_gradient, lambda: weighted_rows(u, v, scale, own, other, mask, form)),
                input_gradients.Side(b, v, b_gradient, lambda: weighted_rows(v, u, scale, other, own, flipped, form)),
            ]
        share = 0.5 if b is None else 1.0
        out, ds = input_gradients.gradients_of_sides(sides, scale, unit, scale_tensor, share)
        return out[0], (a.new_empty(0) if b is None else out[1]), ds
