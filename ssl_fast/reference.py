"""Every formula once, in plain PyTorch: the specification that all kernels are held to.

Same names and signatures as `ssl_fast.functional`, but arguments are not checked here and the
similarity matrix is stored. These functions are also what runs where no kernel is built.

Notation: u_i = x_i / max(|x_i|, EPS), s = 1 / temperature (any sign, not zero).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; a float16 gradient saturates instead of becoming Inf.

    The gradient of a zero row is dU / EPS, which float16 cannot hold.
    """
    if x.dtype not in (torch.float16, torch.bfloat16):
        return x
    x32 = x.float()
    if x.dtype == torch.float16 and x32.requires_grad:
        largest = torch.finfo(torch.float16).max
        x32.register_hook(lambda gradient: gradient.clamp(-largest, largest))
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


def in_range(temperature):
    """A tensor's value outside TEMPERATURES becomes NaN; numbers are checked by the public functions."""
    if not isinstance(temperature, Tensor):
        return temperature
    size = temperature.abs()
    return torch.where((size >= TEMPERATURES[0]) & (size <= TEMPERATURES[1]), temperature, float("nan"))


def reduce(loss_rows: Tensor, reduction: str) -> Tensor:
    """The mean or the sum of the rows' losses (N,), or the rows themselves."""
    if reduction == "mean":
        return loss_rows.mean()
    return loss_rows.sum() if reduction == "sum" else loss_rows


def _stats(loss_rows: Tensor, ranks: Tensor, positive: Tensor, negative_sum: Tensor, negatives: int):
    # A NaN row has no rank: NaN - NaN carries it into the shares.
    nan_or_zero = (loss_rows - loss_rows).detach()
    top1 = ((ranks < 1) + nan_or_zero).mean()
    top5 = ((ranks < 5) + nan_or_zero).mean()
    rows = positive.numel()
    negative_mean = negative_sum.sum() / (rows * negatives) if negatives else positive.new_tensor(float("nan"))
    return ContrastiveStats(top1, top5, positive.mean(), negative_mean)


def nt_xent(z1: Tensor, z2: Tensor, temperature=0.1, reduction: str = "mean", return_stats: bool = False):
    """NT-Xent of SimCLR (Chen et al. 2020, eq. 1) over the 2N rows of two views.

    loss_i = log sum_{k != i} exp(s <u_i, u_k>) - s <u_i, u_p(i)>, p(i) the row of the other view.
    """
    temperature = in_range(temperature)
    u = unit_rows(torch.cat([z1, z2]))
    rows = u.shape[0]
    partner = torch.arange(rows, device=u.device).roll(rows // 2)
    itself = torch.eye(rows, dtype=torch.bool, device=u.device)
    similarity = u @ u.T
    logits = (similarity / temperature).masked_fill(itself, float("-inf"))
    positive_logits = logits.gather(1, partner[:, None])
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        ranks = (logits > positive_logits).sum(1)
        positive = similarity.gather(1, partner[:, None])[:, 0]
        negative_sum = similarity.masked_fill(itself, 0).sum(1) - positive
        return loss, _stats(loss_rows, ranks, positive, negative_sum, rows - 2)


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives=None,
    temperature=0.1,
    reduction: str = "mean",
    return_stats: bool = False,
):
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    loss_i = log(exp(s <q_i, k_i>) + sum_j exp(s <q_i, n_j>)) - s <q_i, k_i>. The n_j are the other
    positives (negatives=None), the rows of a tensor (M, D), row i's own rows of a tensor (N, M, D),
    or the rows of a NegativeQueue, which are taken as they are; all else is normalised here.
    """
    temperature = in_range(temperature)
    q, k = unit_rows(query), unit_rows(positive)
    positive_similarity = (q * k).sum(1)
    if negatives is None:
        similarity = q @ k.T
        itself = torch.eye(q.shape[0], dtype=torch.bool, device=q.device)
        # The positive's column is the first one below, as it is for explicit negatives.
        negative_logits = (similarity / temperature).masked_fill(itself, float("-inf"))
        similarity = similarity.masked_fill(itself, 0)
        count = q.shape[0] - 1
    else:
        n = normalized_negatives(negatives).to(q.dtype)
        similarity = q @ n.T if n.dim() == 2 else (n @ q[:, :, None])[:, :, 0]
        negative_logits = similarity / temperature
        count = similarity.shape[1]
    positive_logits = positive_similarity[:, None] / temperature
    logits = torch.cat([positive_logits, negative_logits], 1)
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    with torch.no_grad():
        ranks = (negative_logits > positive_logits).sum(1)
        return loss, _stats(loss_rows, ranks, positive_similarity, similarity.sum(1), count)


def normalized_negatives(negatives) -> Tensor:
    """A queue's rows as they are, a tensor's rows normalised."""
    if isinstance(negatives, Tensor):
        return unit_rows(negatives)
    # Cloned because MoCo enqueues between the loss and its backward, and autograd keeps this.
    rows = upcast(negatives.queue.clone())
    # As in `unit_rows`. Left as it is, Inf could make a logit of -Inf, and a finite loss.
    return rows.masked_fill(~rows.isfinite().all(-1, keepdim=True), float("nan"))


@torch.no_grad()
def ema_update_(target: list[Tensor], source: list[Tensor], momentum: float) -> None:
    """t = momentum * t + (1 - momentum) * s in place, in float32 or wider; integers are copied."""
    for t, s in zip(target, source, strict=True):
        if t.is_floating_point():
            wide = torch.promote_types(torch.promote_types(t.dtype, s.dtype), torch.float32)
            t.copy_(t.to(wide) * momentum + s.to(wide) * (1 - momentum))
        else:
            t.copy_(s)


@torch.no_grad()
def enqueue_(queue: Tensor, queue_ptr: Tensor, keys: Tensor, normalize: bool = False) -> None:
    """Row j of keys goes to row (ptr + j) mod K of queue (MoCo, He et al. 2020, algorithm 1).

    With more keys than rows the last K keys stay, where writing all in turn would leave them.
    normalize: their unit rows.
    """
    if normalize:
        keys = unit_rows(keys)
    size, count = queue.shape[0], keys.shape[0]
    first = max(count - size, 0)
    places = (queue_ptr + torch.arange(first, count, device=queue.device)) % size
    # A copy: the keys may be rows of the queue itself.
    queue.index_copy_(0, places, keys[first:].to(queue.dtype, copy=True))
    queue_ptr.copy_((queue_ptr + count) % size)
