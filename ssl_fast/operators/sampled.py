"""Similarities of rows with sampled rows of a memory bank, of which only some are gathered at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..formulas.rows import finite_rows

# Elements of a matrix, or of gathered rows, that may exist at a time.
CHUNK_ELEMENTS = 1 << 22


class _SampledSimilarity(torch.autograd.Function):
    """<u_i, bank_j> for j in index_i, gathering a part of the rows at a time, in the dtype of u."""

    @staticmethod
    def _pieces(x: Tensor, bank: Tensor, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows of x, the bank's rows (.., m, D) that they meet)."""
        step = max(1, CHUNK_ELEMENTS // (index.shape[1] * bank.shape[1]))
        for own, places in zip(x.split(step), index.split(step), strict=True):
            # index_select refuses negative places, which indexing would count from the end.
            rows = bank.index_select(0, places.flatten()).view(*places.shape, -1)
            yield own, finite_rows(rows).to(x.dtype)

    @staticmethod
    def forward(u: Tensor, bank: Tensor, index: Tensor) -> Tensor:
        with torch.autocast(u.device.type, enabled=False):
            pieces = _SampledSimilarity._pieces(u, bank, index)
            return torch.cat([(rows @ own[:, :, None])[:, :, 0] for own, rows in pieces])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bank, index = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            pieces = _SampledSimilarity._pieces(gradient, bank, index)
            return torch.cat([(own[:, None] @ rows)[:, 0] for own, rows in pieces]), None, None


def sampled_similarity(u: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """(N, m) similarities of rows (N, D) with the rows index (N, m) of the bank, which gets no gradient."""
    return _SampledSimilarity.apply(u, bank, index)
