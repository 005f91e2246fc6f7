"""Rows of embeddings -> unit rows, u_i = x_i / max(|x_i|, EPS)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPS = 1e-12


def in_full_precision(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, some of whose arguments are tensors, without autocast: it would multiply in half precision."""

    @functools.wraps(function)
    def without_autocast(*arguments: Any, **options: Any) -> Any:
        device = next(x.device.type for x in (*arguments, *options.values()) if isinstance(x, Tensor))
        if not torch.amp.is_autocast_available(device):  # the meta device
            return function(*arguments, **options)
        with torch.autocast(device, enabled=False):
            return function(*arguments, **options)

    return without_autocast


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32.

    The gradient of a zero row is dU / EPS, beyond float16, and saturates. Of other rows, Inf tells a gradient scaler
    to back off.
    """
    if x.dtype not in (torch.float16, torch.bfloat16):
        return x
    x32 = x.float()
    if x.dtype == torch.float16 and x32.requires_grad:
        largest, zero = torch.finfo(torch.float16).max, ~x.detach().any(-1, keepdim=True)
        x32.register_hook(lambda gradient: torch.where(zero, gradient.clamp(-largest, largest), gradient))
    return x32


def unit_rows(x: Tensor) -> Tensor:
    """u = x / max(|x|, EPS) along the last dimension, in float32 or wider.

    The row is first divided by its largest entry, so that no finite row overflows its norm. A row
    that holds Inf becomes NaN.
    """
    x = upcast(x)
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    # Rows of ordinary size are left alone: their norm is taken directly, as everyone does.
    size = torch.where(largest > 1e15, largest, torch.ones_like(largest))
    x = x / size
    # x / size is in [-1, 1] or the row is ordinary; EPS shrinks with it.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.maximum(norm, EPS / size)


def random_unit_rows(size: int, dim: int, seed: int | None) -> Tensor:
    """(size, dim) random directions. seed: None draws from torch's global generator."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return unit_rows(torch.randn(size, dim, generator=generator))


def finite_rows(x: Tensor) -> Tensor:
    """The rows as they are; one that holds Inf becomes NaN, as in `unit_rows`: a logit of -Inf is a finite loss."""
    x = upcast(x)
    return x.masked_fill(~x.isfinite().all(-1, keepdim=True), float("nan"))


def rows_of(x: Tensor, normalize: bool) -> Tensor:
    """`unit_rows`, or with normalize=False `finite_rows`: what the losses compare."""
    return unit_rows(x) if normalize else finite_rows(x)
