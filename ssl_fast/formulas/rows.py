"""Rows of embeddings and of losses: normalisation, reduction, statistics. What all formulas share.

Notation: u_i = x_i / max(|x_i|, EPS), s = 1 / temperature (any sign, not zero).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .annotations import Scalar

EPS = 1e-12
# Sizes of a temperature. Beyond these, logits in float32 are rounding noise or all equal.
TEMPERATURES = (1e-8, 1e8)


class ContrastiveStats(NamedTuple):
    """How well the batch separates positives from negatives; four 0-D tensors without gradient.

    top1, top5: share of anchors whose positive is (among) the 1 / 5 most similar candidates,
    where similarity counts with the sign of the temperature and ties go to the positive.
    positive_similarity, negative_similarity: mean cosine similarity of anchor-positive pairs and
    of anchor-negative pairs (NaN where there is no negative).
    """

    top1: Tensor
    top5: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


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


def in_range(temperature: Scalar) -> Any:
    """A tensor's value outside TEMPERATURES becomes NaN; numbers are checked by the public functions."""
    if not isinstance(temperature, Tensor):
        return temperature
    size = temperature.abs()
    return torch.where((size >= TEMPERATURES[0]) & (size <= TEMPERATURES[1]), temperature, float("nan"))


class _OnDevice(torch.autograd.Function):
    """The value of a 0-D CPU tensor on a device."""

    @staticmethod
    def forward(x: Tensor, device: torch.device) -> Tensor:
        # The value is passed to the device as an argument of the kernel that fills the tensor. A copy would wait.
        return torch.full((), x.item(), dtype=x.dtype, device=device)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is saved: the gradient is passed through."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.cpu(), None


def on_device(value: Scalar, device: torch.device) -> Any:
    """A number as it is; a 0-D CPU tensor as one on the embeddings' device, with its gradient.

    The forward pass copies nothing and waits for nothing. A gradient is copied back to the CPU, which waits for the
    device, only where the CPU tensor requires it.
    """
    if not isinstance(value, Tensor) or value.device == device:
        return value
    if torch.compiler.is_compiling():  # a trace cannot read the value
        return value.to(device, non_blocking=True)
    return _OnDevice.apply(value, device)


# PyTorch shares out more elements than this among its threads, and rounds by how many there are.
ONE_THREAD = 1 << 15


def total(x: Tensor) -> Tensor:
    """The sum of all elements, in an order that their number alone decides: the same bits at any thread count."""
    x = x.flatten()
    while x.numel() > ONE_THREAD:
        padding = -x.numel() % 1024
        x = torch.cat([x, x.new_zeros(padding)]).view(-1, 1024).sum(1)
    return x.sum()


def row_totals(x: Tensor) -> Tensor:
    """The sum of each row of x (N, m), in an order that m alone decides."""
    padding = -x.shape[1] % 1024
    return torch.nn.functional.pad(x, (0, padding)).view(x.shape[0], -1, 1024).sum(2).sum(1)


def by_pieces(function: Callable[..., Any], *tensors: Tensor) -> Tensor:
    """function(*tensors) of rows, some rows at a time: exp and log differ where a thread's share ends."""
    step = max(1, ONE_THREAD * tensors[0].shape[0] // tensors[0].numel())
    if tensors[0].shape[0] <= step:
        return function(*tensors)
    return torch.cat([function(*pieces) for pieces in zip(*(x.split(step) for x in tensors), strict=True)])


def reduce(loss_rows: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses (N,), or the rows themselves."""
    if reduction == "mean":
        return total(loss_rows) / loss_rows.numel()
    return total(loss_rows) if reduction == "sum" else loss_rows


def stats_of(loss_rows: Tensor, ranks: Tensor, positive_mean: Tensor, negative_mean: Tensor) -> ContrastiveStats:
    """ranks: of each anchor, how many candidates are more similar than its positive."""
    # A NaN row has no rank: NaN - NaN carries it into the shares.
    nan_or_zero = (loss_rows - loss_rows).detach()
    return ContrastiveStats(
        ((ranks < 1) + nan_or_zero).mean(), ((ranks < 5) + nan_or_zero).mean(), positive_mean, negative_mean
    )


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to rounding on both sides."""
    return by_pieces(lambda piece: torch.nn.functional.softplus(piece, threshold=50), x)


def logsumexp(x: Tensor) -> Tensor:
    """Of each row of x (N, P)."""
    return by_pieces(lambda piece: piece.logsumexp(1), x)


def views_of(features: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """(N, D) with labels (N,); (B, V, D) becomes (B V, D), all views of a row with its label or, without, its index."""
    if features.dim() == 2:
        return features, labels
    count, views, dim = features.shape
    if labels is None:
        labels = torch.arange(count, device=features.device)
    return features.reshape(count * views, dim), labels.repeat_interleave(views)


def reduce_with_positives(loss_rows: Tensor, positives: Tensor, reduction: str, count_without_positive: bool) -> Tensor:
    """positives (N,): how many each row has. Rows without one are 0, and not in the mean unless they count."""
    if reduction != "mean" or count_without_positive:
        return reduce(loss_rows, reduction)
    return total(loss_rows) / (positives > 0).sum().clamp_min(1)
