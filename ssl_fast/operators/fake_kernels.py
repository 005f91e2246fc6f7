"""Shapes without data of every operator, for torch.compile; the schemas are in csrc/operators/schemas.cpp."""

from __future__ import annotations

import torch


def _up_to(x, multiple):
    return (x + multiple - 1) // multiple * multiple


def register(layout: dict[str, int]) -> None:
    """Called once the extension has defined the operators, with its kept_layout(): how the C++ code keeps pairs."""

    def wide(x):
        return torch.float64 if x.dtype == torch.float64 else torch.float32

    def loss_and_stats(x, rows, reduction, return_stats):
        loss = x.new_empty((rows,) if reduction == 0 else (), dtype=wide(x))
        return loss, x.new_empty(4 if return_stats else 0, dtype=wide(x))

    def kept_count(x, rows, columns, keep):
        # As in csrc/cpu/engine/kept_pairs.h.
        if not keep or x.device.type != "cpu" or x.shape[1] < layout["least_dim"]:
            return 0

        def padded(rows, columns):
            return _up_to(rows, layout["row_group"]) * _up_to(columns, layout["column_group"])

        count, itemsize = torch.sym_max(padded(rows, columns), padded(columns, rows)), wide(x).itemsize
        budget = layout["bytes_wanted"]
        if budget < 0:
            of_rows = layout["times_rows"] * (rows + columns) * x.shape[1] * itemsize
            budget = torch.sym_max(layout["bytes"], of_rows)
        return count if count * itemsize <= budget else 0

    def sums_of(x, rows, kept=0):
        # The Triton kernels keep a row more (SUMS_ROWS in kernels/engine/constants.py).
        shape = (_up_to(2 * rows, layout["sums_group"]) + kept,) if kept else (2 if x.device.type == "cpu" else 3, rows)
        return x.new_empty(shape, dtype=wide(x))

    def scale_gradient(x, scale_tensor):
        return x.new_empty((), dtype=wide(x)) if scale_tensor is None else torch.empty_like(scale_tensor)

    @torch.library.register_fake("ssl_fast::nt_xent")
    def _(z1, z2, scale, scale_tensor, reduction, return_stats, keep=False):
        rows = 2 * z1.shape[0]
        sums = sums_of(z1, rows, kept_count(z1, rows, rows, keep))
        return *loss_and_stats(z1, rows, reduction, return_stats), sums

    @torch.library.register_fake("ssl_fast::nt_xent_backward")
    def _(gradient, z1, z2, scale, scale_tensor, reduction, sums):
        return z1.new_empty(z1.shape), z2.new_empty(z2.shape), scale_gradient(z1, scale_tensor)

    @torch.library.register_fake("ssl_fast::info_nce")
    def _(
        query, positive, negatives, normalize_negatives, scale, scale_tensor, reduction, return_stats,
        query_gradient=False, keep=False,
    ):  # fmt: skip
        rows, dim = query.shape
        key_means = query.new_empty((rows if query_gradient else 0, dim), dtype=wide(query))
        candidates = rows if negatives is None else negatives.shape[0]
        shared = negatives is None or negatives.dim() == 2
        sums = sums_of(query, rows, kept_count(query, rows, candidates, keep and shared))
        return *loss_and_stats(query, rows, reduction, return_stats), sums, key_means

    @torch.library.register_fake("ssl_fast::info_nce_backward")
    def _(
        gradient, query, positive, negatives, in_batch, normalize_negatives, scale, scale_tensor,
        reduction, sums, key_means, negatives_gradient,
    ):  # fmt: skip
        own = negatives is not None and negatives_gradient
        negatives_out = negatives.new_empty(negatives.shape) if own else query.new_empty(0)
        scale_out = scale_gradient(query, scale_tensor)
        return query.new_empty(query.shape), positive.new_empty(positive.shape), negatives_out, scale_out

    def given(x, wanted):
        return x.new_empty(x.shape if wanted else 0)

    @torch.library.register_fake("ssl_fast::similarity_lse")
    def _(
        a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, scale, scale_tensor, positive, keep=False,
    ):  # fmt: skip
        rows, others = a.shape[0], b.shape[0] if columns else 0
        ranks = a.new_empty((0 if positive is None else 1 + columns, rows), dtype=torch.int64)
        lse, column_lse = (a.new_empty(count, dtype=torch.float64) for count in (rows, others))
        kept = kept_count(a, rows, rows if b is None else b.shape[0], keep)
        return lse, column_lse, ranks, sums_of(a, rows + others, kept)

    @torch.library.register_fake("ssl_fast::similarity_lse_backward")
    def _(
        gradient, column_gradient, a, b, ids_a, ids_b, mask, normalize_a, normalize_b, scale,
        scale_tensor, sums, a_gradient, b_gradient,
    ):  # fmt: skip
        db = a.new_empty(0) if b is None else given(b, b_gradient)
        return given(a, a_gradient), db, scale_gradient(a, scale_tensor)

    @torch.library.register_fake("ssl_fast::pair_similarity")
    def _(a, b, normalize_a, normalize_b):
        return a.new_empty(a.shape[0], dtype=wide(a))

    @torch.library.register_fake("ssl_fast::pair_similarity_backward")
    def _(gradient, a, b, normalize_a, normalize_b):
        return given(a, True), given(b, True)

    @torch.library.register_fake("ssl_fast::class_similarity")
    def _(x, labels):
        return x.new_empty(x.shape[0], dtype=wide(x)), torch.empty_like(labels)

    @torch.library.register_fake("ssl_fast::class_similarity_backward")
    def _(gradient, x, labels):
        return given(x, True)

    @torch.library.register_fake("ssl_fast::similarity_softplus")
    def _(a, b, normalize, scale, scale_tensor, bias, positive, keep=False):
        rows = a.shape[0]
        ranks = a.new_empty((0 if positive is None else 2, rows), dtype=torch.int64)
        kept = a.new_empty(kept_count(a, rows, rows, keep), dtype=wide(a))
        return a.new_empty((2, rows), dtype=wide(a)), ranks, kept

    @torch.library.register_fake("ssl_fast::similarity_softplus_backward")
    def _(gradient, a, b, normalize, scale, scale_tensor, bias, sums, kept, a_gradient, b_gradient):
        return (
            given(a, a_gradient), given(b, b_gradient), scale_gradient(a, scale_tensor),
            torch.empty_like(bias),
        )  # fmt: skip

    @torch.library.register_fake("ssl_fast::positive_loss")
    def _(lse, positive, weights, in_denominator, mean_in_log, scale, scale_tensor, reduction):
        return positive.new_empty(lse.shape if reduction == 0 else ())

    @torch.library.register_fake("ssl_fast::positive_loss_backward")
    def _(gradient, lse, positive, weights, in_denominator, mean_in_log, scale, scale_tensor, reduction):
        return lse.new_empty(lse.shape), given(positive, True), scale_gradient(positive, scale_tensor)

    @torch.library.register_fake("ssl_fast::ema_update_")
    @torch.library.register_fake("ssl_fast::triton_ema_update_")
    def _(target, source, momentum, momentum_tensor=None, seed=None):
        pass

    @torch.library.register_fake("ssl_fast::enqueue_")
    @torch.library.register_fake("ssl_fast::triton_enqueue_")
    def _(queue, queue_ptr, keys, normalize=False):
        pass
