"""Every formula once, in plain PyTorch: the specification that all kernels are held to.

Same names and signatures as `ssl_fast.functional`, but arguments are not checked here and the
similarity matrix is stored. These functions are also what runs where no kernel is built.

Notation: u_i = x_i / max(|x_i|, EPS), s = 1 / temperature (rows.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .rounding import rounded_at_random
from .rows import (
    ContrastiveStats,
    finite_rows,
    in_full_precision,
    in_range,
    reduce,
    reduce_with_positives,
    row_totals,
    softplus,
    stats_of,
    total,
    unit_rows,
    views_of,
)

if TYPE_CHECKING:
    from .annotations import Loss, Scalar


@torch.no_grad()
def _stats(
    loss_rows: Tensor, similarity: Tensor, best: Tensor, positive_mean: Tensor, negative: Tensor, temperature: Scalar
) -> ContrastiveStats:
    """Of a matrix (anchors, candidates). negative: a mask. best: similarity of each anchor's best positive."""
    scores, threshold = similarity / temperature, best[:, None] / temperature
    ranks = ((scores > threshold) & negative).sum(1)
    negative_mean = total(similarity.masked_fill(~negative, 0)) / negative.sum()
    return stats_of(loss_rows, ranks, positive_mean, negative_mean)


@in_full_precision
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: Scalar = 0.1, reduction: str = "mean", return_stats: bool = False
) -> Loss:
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
    positive = similarity.gather(1, partner[:, None])[:, 0]
    negative = ~itself & (partner[:, None] != torch.arange(rows, device=u.device))
    return loss, _stats(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
    exclude: Any = None,
) -> Loss:
    """InfoNCE (van den Oord et al. 2018, eq. 4; MoCo, He et al. 2020, eq. 1), one loss a query.

    loss_i = log(exp(s <q_i, k_i>) + sum_j exp(s <q_i, n_j>)) - s <q_i, k_i>. The n_j are the other
    positives (negatives=None), the rows of a tensor (M, D), row i's own rows of a tensor (N, M, D),
    or the rows of a NegativeQueue, which are taken as they are; all else is normalised here.
    exclude: (ids of the queries, ids of the negatives); those with the query's id are left out.
    """
    temperature = in_range(temperature)
    q, k = unit_rows(query), unit_rows(positive)
    positive_similarity = (q * k).sum(1)
    if negatives is None:
        similarity = q @ k.T
        negative = ~torch.eye(q.shape[0], dtype=torch.bool, device=q.device)
    else:
        n = normalized_negatives(negatives).to(q.dtype)
        similarity = q @ n.T if n.dim() == 2 else (n @ q[:, :, None])[:, :, 0]
        negative = torch.ones_like(similarity, dtype=torch.bool)
    if exclude is not None:
        negative = negative & (exclude[0][:, None] != exclude[1])
    # The positive's column is the first one, in batch too.
    positive_logits = positive_similarity[:, None] / temperature
    negative_logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    logits = torch.cat([positive_logits, negative_logits], 1)
    loss_rows = logits.logsumexp(1) - positive_logits[:, 0]
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    positive_mean = positive_similarity.detach().mean()
    return loss, _stats(loss_rows, similarity, positive_similarity, positive_mean, negative, temperature)


def normalized_negatives(negatives: Any) -> Tensor:
    """A queue's rows as they are, a tensor's rows normalised."""
    if isinstance(negatives, Tensor):
        return unit_rows(negatives)
    # Cloned because MoCo enqueues between the loss and its backward, and autograd keeps this.
    return finite_rows(negatives.queue.clone())


def _allowed(a: Tensor, b: Tensor, exclude: Any, only: Any) -> Tensor:
    """The mask (N, M) of the pairs that count."""
    itself = torch.arange(a.shape[0], device=a.device)[:, None] == torch.arange(b.shape[0], device=a.device)
    if only is not None:
        same = only[0][:, None] == only[1]
        return same & ~itself if a is b else same
    if exclude is None:
        return torch.ones_like(itself)
    return ~itself if exclude == "self" else exclude[0][:, None] != exclude[1]


@in_full_precision
def similarity_lse(
    a: Tensor,
    b: Tensor,
    scale: Scalar = 10.0,
    exclude: Any = None,
    only: Any = None,
    normalize: bool = True,
    columns: bool = False,
) -> Any:
    """lse_i = log sum_k exp(scale <u_i, v_k>) over the allowed k; -Inf where there is none.

    Allowed are all k; with exclude="self" k != i; with exclude=(ids of a, ids of b) those whose id
    differs; with `only` those whose id is equal and, where b is a, k != i. columns: of each column too.
    """
    u = unit_rows(a) if normalize else finite_rows(a)
    v = u if b is a else (unit_rows(b) if normalize else finite_rows(b)).to(u.dtype)
    if isinstance(scale, Tensor):
        scale = 1 / in_range(1 / scale)
    logits = (scale * (u @ v.T)).masked_fill(~_allowed(a, b, exclude, only), float("-inf"))
    return (logits.logsumexp(1), logits.logsumexp(0)) if columns else logits.logsumexp(1)


@in_full_precision
def supcon(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: Scalar = 0.1,
    form: str = "out",
    count_without_positive: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020): positives averaged outside (eq. 2) or inside the log (eq. 3).

    With P(i) the other rows of i's label: out: log sum_{k != i} exp(s <u_i, u_k>) - mean_{p in P(i)} s <u_i, u_p>;
    in: log sum_{k != i} exp(s <u_i, u_k>) - log mean_{p in P(i)} exp(s <u_i, u_p>). Without positives 0.
    """
    temperature = in_range(temperature)
    rows, labels = views_of(features, labels)
    u = unit_rows(rows)
    itself = torch.eye(u.shape[0], dtype=torch.bool, device=u.device)
    same = labels[:, None] == labels
    positive, count = same & ~itself, same.sum(1) - 1
    similarity = u @ u.T
    logits = similarity / temperature
    whole = logits.masked_fill(itself, float("-inf")).logsumexp(1)
    if form == "out":
        attraction = logits.masked_fill(~positive, 0).sum(1) / count
    else:
        attraction = logits.masked_fill(~positive, float("-inf")).logsumexp(1) - count.to(u.dtype).log()
    # A row that is NaN stays NaN, alone too.
    bad = whole.isnan() | logits.diagonal().isnan()
    loss_rows = torch.where(count > 0, whole - attraction, 0).masked_fill(bad, float("nan"))
    loss = reduce_with_positives(loss_rows, count, reduction, count_without_positive)
    if not return_stats:
        return loss
    sign = torch.sign(1 / torch.as_tensor(temperature, device=u.device))
    best = sign * (sign * similarity).masked_fill(~positive, float("-inf")).amax(1)
    positive_mean = similarity.detach().masked_fill(~positive, 0).sum() / count.sum()
    return loss, _stats(loss_rows, similarity, best, positive_mean, ~same, temperature)


def _two_views(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(unit rows (2N, D), the partner's row of each, the mask of its negatives)."""
    u = unit_rows(torch.cat([z1, z2]))
    place = torch.arange(u.shape[0], device=u.device)
    image = place % z1.shape[0]
    return u, place.roll(z1.shape[0]), image[:, None] != image


def von_mises_fisher_weights(similarity: Tensor, sigma: float) -> Tensor:
    """2 - N softmax(<u_i, v_i> / sigma) of N pairs, without gradient (Yeh et al. 2022, eq. 7)."""
    return 2 - similarity.shape[0] * (similarity.detach() / sigma).softmax(0)


@in_full_precision
def dcl(
    z1: Tensor,
    z2: Tensor,
    temperature: Scalar = 0.1,
    sigma: float | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6) over the 2N rows of two views: the positive leaves the sum.

    loss_i = log sum_{k != i, p(i)} exp(s <u_i, u_k>) - w_i s <u_i, u_p(i)>, w_i = 1 or, with sigma, DCLW's weight.
    """
    temperature = in_range(temperature)
    u, partner, negative = _two_views(z1, z2)
    similarity = u @ u.T
    positive = similarity.gather(1, partner[:, None])[:, 0]
    weights = 1 if sigma is None else von_mises_fisher_weights(positive[: z1.shape[0]], sigma).repeat(2)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    loss_rows = logits.logsumexp(1) - weights * positive / temperature
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    return loss, _stats(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def hard_negative_nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: Scalar = 0.5,
    beta: float = 1.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Contrastive loss with hard negatives (Robinson et al. 2021, eq. 4 and section 3.2) over the 2N rows of two views.

    With n the M = 2N - 2 negatives' exp(s <u_i, u_k>) and p the positive's: loss_i = log(1 + G / p),
    G = max(M (mean(n^(1 + beta)) / mean(n^beta) - tau_plus p) / (1 - tau_plus), M exp(-|s|)).
    """
    temperature = in_range(temperature)
    u, partner, negative = _two_views(z1, z2)
    similarity = u @ u.T
    positive = similarity.gather(1, partner[:, None])[:, 0]
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    # beta of 0: the log of the number of negatives.
    tilted = (beta * logits.masked_fill(~negative, 0)).masked_fill(~negative, float("-inf")).logsumexp(1)
    log_mean = ((1 + beta) * logits).logsumexp(1) - tilted
    positive_logits = positive / temperature
    log_sum = hard_negative_log_sum(log_mean, positive_logits, 1 / temperature, u.shape[0] - 2, tau_plus)
    loss_rows = softplus(log_sum - positive_logits)
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    return loss, _stats(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


def hard_negative_log_sum(
    log_mean: Tensor, positive_logits: Any, scale: Any, negatives: int, tau_plus: float
) -> Tensor:
    """log G of each row, from the log of the negatives' reweighted mean. positive_logits: only with tau_plus."""
    if tau_plus:
        # By the larger of the two: neither exponential overflows, and not both underflow.
        largest = torch.maximum(log_mean, positive_logits).detach()
        mean = ((log_mean - largest).exp() - tau_plus * (positive_logits - largest).exp()) / (1 - tau_plus)
        none_left = mean <= 0  # not for NaN, which stays
        log_mean = (mean.masked_fill(none_left, 1).log() + largest).masked_fill(none_left, float("-inf"))
    log_mean = torch.maximum(log_mean, torch.zeros_like(log_mean) - abs(scale))
    return log_mean + log_mean.new_full((), negatives).log()


@in_full_precision
def clip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """CLIP's symmetric loss (Radford et al. 2021, fig. 3): each row of a against all of b, and of b against all of a.

    2N losses, log sum_k exp(s <u_i, v_k>) - s <u_i, v_i> first, then log sum_k exp(s <u_k, v_i>) - s <u_i, v_i>.
    """
    temperature = in_range(temperature)
    prepared = unit_rows if normalize else finite_rows
    similarity = prepared(a) @ prepared(b).T
    logits, positive = similarity / temperature, similarity.diagonal().repeat(2)
    loss_rows = torch.cat([logits.logsumexp(1), logits.logsumexp(0)]) - positive / temperature
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    negative = ~torch.eye(a.shape[0], dtype=torch.bool, device=a.device).repeat(2, 1)
    both = torch.cat([similarity, similarity.T])
    return loss, _stats(loss_rows, both, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def siglip(
    a: Tensor,
    b: Tensor,
    temperature: Scalar = 0.1,
    bias: Scalar = -10.0,
    normalize: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Pairwise sigmoid loss (Zhai et al. 2023, eq. 1): a binary decision for each of the N x N pairs.

    loss_i = sum_k log(1 + exp(-z_ik (s <u_i, v_k> + bias))), z_ik = 1 for k = i, else -1.
    """
    temperature = in_range(temperature)
    prepared = unit_rows if normalize else finite_rows
    similarity = prepared(a) @ prepared(b).T
    itself = torch.eye(a.shape[0], dtype=torch.bool, device=a.device)
    logits = similarity / temperature + bias
    loss_rows = softplus(torch.where(itself, -logits, logits)).sum(1)
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    positive, both = similarity.diagonal().repeat(2), torch.cat([similarity, similarity.T])
    stats = _stats(loss_rows.repeat(2), both, positive, positive.detach().mean(), ~itself.repeat(2, 1), temperature)
    return loss, stats


@in_full_precision
def moco_v3(
    query1: Tensor,
    query2: Tensor,
    key1: Tensor,
    key2: Tensor,
    temperature: Scalar = 1.0,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """MoCo v3 (Chen et al. 2021, algorithm 1): 2 temperature (ctr(q1, k2) + ctr(q2, k1)), one loss an image."""
    first = info_nce(query1, key2, None, temperature, "none", return_stats)
    second = info_nce(query2, key1, None, temperature, "none", return_stats)
    return symmetric_sum(first, second, 2 * in_range(temperature), reduction, return_stats)


def symmetric_sum(first: Any, second: Any, factor: Scalar, reduction: str, return_stats: bool) -> Loss:
    """factor * (first + second) of two losses of the same images, and the mean of their statistics."""
    if not return_stats:
        return reduce(factor * (first + second), reduction)
    loss = reduce(factor * (first[0] + second[0]), reduction)
    return loss, ContrastiveStats(*((x + y) / 2 for x, y in zip(first[1], second[1], strict=True)))


@in_full_precision
def instance_discrimination(
    features: Tensor,
    index: Tensor,
    bank: Any,
    temperature: Scalar = 0.07,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Non-parametric softmax over all n images (Wu et al. 2018, eq. 2): the bank's row index_i is the positive.

    loss_i = log sum_j exp(s <u_i, bank_j>) - s <u_i, bank_index_i>. The bank's rows are taken as they are.
    """
    temperature = in_range(temperature)
    u = unit_rows(features)
    similarity = u @ finite_rows(bank).to(u.dtype).T
    positive = similarity.gather(1, index[:, None])[:, 0]
    logits = similarity / temperature
    loss_rows = logits.logsumexp(1) - positive / temperature
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    negative = index[:, None] != torch.arange(bank.shape[0], device=u.device)
    return loss, _stats(loss_rows, similarity, positive, positive.detach().mean(), negative, temperature)


@in_full_precision
def instance_nce(
    features: Tensor,
    index: Tensor,
    noise: Tensor,
    bank: Any,
    normalizer: Scalar,
    temperature: Scalar = 0.07,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """Noise-contrastive estimation of that softmax (Wu et al. 2018, eq. 4 to 8) with m sampled images, noise (N, m).

    With P = exp(s <u, bank_j>) / normalizer and h = P / (P + m / n):
    loss_i = -log h(index_i) - sum_j log(1 - h(noise_ij)).
    """
    temperature = in_range(temperature)
    u, rows = unit_rows(features), finite_rows(bank)
    similarity = (rows[torch.cat([index[:, None], noise], 1)].to(u.dtype) @ u[:, :, None])[:, :, 0]
    return nce_of(similarity, bank.shape[0], normalizer, temperature, reduction, return_stats)


def nce_of(
    similarity: Tensor, images: int, normalizer: Scalar, temperature: Scalar, reduction: str, return_stats: bool
) -> Loss:
    """The loss of `instance_nce` from the similarities (N, 1 + m) of each row with its own image and the noise."""
    noise = similarity.shape[1] - 1
    # log(P n / m)
    normalizer = torch.as_tensor(normalizer, dtype=torch.float64, device=similarity.device)
    logits = similarity / temperature - (normalizer.log() + math.log(noise / images)).to(similarity.dtype)
    loss_rows = softplus(-logits[:, 0]) + row_totals(softplus(logits[:, 1:]))
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    negative, positive = similarity[:, 1:], similarity[:, 0]
    is_negative = torch.ones_like(negative, dtype=torch.bool)
    return loss, _stats(loss_rows, negative, positive, positive.detach().mean(), is_negative, temperature)


@in_full_precision
def multi_positive_info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Any = None,
    temperature: Scalar = 0.1,
    form: str = "out",
    reduction: str = "mean",
    return_stats: bool = False,
) -> Loss:
    """InfoNCE with P positives a query, (N, P, D): SupCon's two forms over the query's positives and its negatives.

    With Z_i the sum over both: out: log Z_i - mean_p s <q_i, k_ip>; in: log Z_i - log mean_p exp(s <q_i, k_ip>).
    The negatives: as for `info_nce`; None: the other queries' positives.
    """
    temperature = in_range(temperature)
    q, k = unit_rows(query), unit_rows(positives)
    of_positives = (k @ q[:, :, None])[:, :, 0]
    if negatives is None:
        image = torch.arange(q.shape[0], device=q.device)
        similarity, negative = q @ k.flatten(0, 1).T, image[:, None] != image.repeat_interleave(k.shape[1])
    else:
        n = normalized_negatives(negatives).to(q.dtype)
        similarity = q @ n.T
        negative = torch.ones_like(similarity, dtype=torch.bool)
    logits = (similarity / temperature).masked_fill(~negative, float("-inf"))
    positive_logits = of_positives / temperature
    whole = torch.cat([positive_logits, logits], 1).logsumexp(1)
    if form == "out":
        loss_rows = whole - positive_logits.mean(1)
    else:
        loss_rows = whole - positive_logits.logsumexp(1) + math.log(k.shape[1])
    loss = reduce(loss_rows, reduction)
    if not return_stats:
        return loss
    best = of_positives.gather(1, positive_logits.argmax(1, keepdim=True))[:, 0]
    return loss, _stats(loss_rows, similarity, best, of_positives.detach().mean(), negative, temperature)


@torch.no_grad()
def ema_update_(target: list[Tensor], source: list[Tensor], momentum: Scalar, seed: Tensor | None = None) -> None:
    """t = momentum * t + (1 - momentum) * s in place, in float32 or wider; integers are copied.

    With momentum 1 (a number or a 0-D tensor) t stays, beside an s of Inf too; outside 0 to 1 it becomes NaN.
    seed (one int64): bfloat16 targets are rounded at random.
    """
    for place, (t, s) in enumerate(zip(target, source, strict=True)):
        update_pair_(t, s, place, momentum, seed)


@torch.no_grad()
def update_pair_(t: Tensor, s: Tensor, place: int, momentum: Scalar, seed: Tensor | None) -> None:
    """`ema_update_` of one pair, at this place in the lists."""
    if not t.is_floating_point():
        t.copy_(s)
        return
    m = torch.as_tensor(momentum, dtype=torch.float64, device=t.device)
    m = torch.where((m >= 0) & (m <= 1), m, torch.nan)
    wide = torch.promote_types(torch.promote_types(t.dtype, s.dtype), torch.float32)
    kept, added = m.to(wide), (1 - m).to(wide)
    x = torch.where(added == 0, t.to(wide), t.to(wide) * kept + s.to(wide) * added)
    if seed is not None and t.dtype == torch.bfloat16:
        in_memory = t.stride() == s.stride() and torch.ops.aten.is_non_overlapping_and_dense(t)
        x = rounded_at_random(x.float(), seed, place, t.stride() if in_memory else None)
    t.copy_(x)


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
