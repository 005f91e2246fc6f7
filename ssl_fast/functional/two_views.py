"""Losses of two views of each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.loss_parts import hard_negative_log_sum, von_mises_fisher_weights
from ..formulas.rows import unit_rows
from ..formulas.scalars import TEMPERATURES, in_range
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import by_pieces, total
from ..operators import calls
from ..operators.codes import IDS_DIFFER, REDUCTIONS
from ..parallel.batch import batch_of
from ..parallel.local import LocalBatch
from . import _statistics
from ._dispatch import as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Scalar


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), without its 2N x 2N matrix.

    With u = normalize(cat([z1, z2])), every row against all others but itself:
    loss_i = logsumexp_{k != i}(u_i . u_k / temperature) - u_i . u_partner(i) / temperature.

    z1, z2: (N, D), row i of both from the same image. The rows' losses: (2N,), those of z1 first.
    """
    checks.pair("z2", z2, "z1", z1)
    temperature = checks.temperature(temperature, z1.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    if group is not None:
        return _nt_xent_across(z1, z2, temperature, reduction, return_stats, batch_of(group, z1))
    if runs_reference("nt_xent", z1):
        return reference.nt_xent(z1, z2, temperature, reduction, return_stats)
    loss, stats, _ = torch.ops.ssl_fast.nt_xent(
        z1, z2, *calls.split(temperature), REDUCTIONS.index(reduction), return_stats
    )
    return (loss, ContrastiveStats(*stats.unbind())) if return_stats else loss


def _nt_xent_across(
    z1: Tensor, z2: Tensor, temperature: Scalar, reduction: str, return_stats: bool, batch: Any
) -> Loss:
    if runs_reference("similarity_lse", z1):
        options = {"temperature": temperature}
        return batch.of_reference(reference.nt_xent, {"z1": z1, "z2": z2}, options, reduction, return_stats)
    views = _TwoViews(z1, z2, return_stats, batch)
    lse, ranks = views.negatives_lse(temperature)
    return views.loss(lse, ranks, temperature, reduction)


def dcl(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.1,
    sigma: float | None = None,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent whose positive is not in the denominator.

    loss_i = logsumexp_{k != i, partner(i)}(u_i . u_k / temperature) - w_i u_i . u_partner(i) / temperature.

    z1, z2: (N, D), N at least 2, row i of both from the same image. The rows' losses: (2N,), those of z1 first.
    sigma: None for weights w_i of 1 (DCL); a number for DCLW's (eq. 7), 2 - N softmax(u_i . u_partner(i) / sigma)
        over the N pairs, without gradient.
    """
    batch: Any = _checked_batch(z1, z2, group)
    temperature = checks.temperature(temperature, z1.device)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    if sigma is not None:
        checks.number("sigma", sigma, 1e-8)
    if runs_reference("similarity_lse", z1):
        if group is None:
            return reference.dcl(z1, z2, temperature, sigma, reduction, return_stats)
        options = {"temperature": temperature, "sigma": sigma}
        return batch.of_reference(reference.dcl, {"z1": z1, "z2": z2}, options, reduction, return_stats)
    views = _TwoViews(z1, z2, return_stats, batch)
    lse, ranks = views.negatives_lse(temperature)
    weights = None
    if sigma is not None:
        positive = batch.gather(views.positive.detach())  # the rank's own first
        weights = von_mises_fisher_weights(positive, sigma)[: z1.shape[0]]
    return views.loss(lse, ranks, temperature, reduction, weights=weights, in_denominator=False)


def hard_negative_nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float | Tensor = 0.5,
    beta: float = 1.0,
    tau_plus: float = 0.0,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """Contrastive loss with hard negatives (Robinson et al. 2021, eq. 4), which weigh by their similarity.

    With n = exp(u_i . u_k / temperature) of the M = 2N - 2 negatives and p that of the positive:
    loss_i = log(1 + G / p), G = M (mean(n^(1 + beta)) / mean(n^beta) - tau_plus p) / (1 - tau_plus), which is kept
    at least M exp(-1 / |temperature|). Two log-sum-exps at two scales: no matrix either.

    z1, z2: (N, D), N at least 2, row i of both from the same image. The rows' losses: (2N,), those of z1 first.
    beta: 0 weighs all alike, larger ones the hard more; temperature / (1 + beta) must be a temperature too, and that
        of a tensor over beta. tau_plus: probability that a negative is of the same
        class, from 0 to below 1 (debiased, Chuang et al. 2020).
    """
    batch: Any = _checked_batch(z1, z2, group)
    temperature = checks.temperature(temperature, z1.device)
    checks.number("beta", beta, 0.0)
    checks.number("tau_plus", tau_plus, 0.0, 1.0)
    checks.reduction(reduction)
    checks.flags(return_stats=return_stats)
    if runs_reference("similarity_lse", z1):
        options = {"temperature": temperature, "beta": beta, "tau_plus": tau_plus}
        if group is None:
            return reference.hard_negative_nt_xent(z1, z2, **options, reduction=reduction, return_stats=return_stats)
        tensors = {"z1": z1, "z2": z2}
        return batch.of_reference(reference.hard_negative_nt_xent, tensors, options, reduction, return_stats)
    if isinstance(temperature, Tensor):
        temperature = in_range(temperature.double())  # rounded once, where it is used
    else:
        checks.temperature(temperature / (1 + beta))
    views, negatives = _TwoViews(z1, z2, return_stats, batch), 2 * batch.total - 2
    lse, ranks = views.negatives_lse(temperature / (1 + beta))
    # A tilt below 1e-8 of the similarities is none.
    tilts = beta > 0 and (isinstance(temperature, Tensor) or abs(temperature) <= TEMPERATURES[1] * beta)
    tilted = views.negatives_lse(temperature / beta)[0] if tilts else lse.new_full((), negatives).log()
    log_mean, rest = lse - tilted, (1 / temperature, negatives, tau_plus)
    if tau_plus:
        positive_logits = calls.scores(views.positive, temperature).repeat(2)
        log_sum = by_pieces(lambda mean, logits: hard_negative_log_sum(mean, logits, *rest), log_mean, positive_logits)
    else:
        log_sum = hard_negative_log_sum(log_mean, None, *rest)
    return views.loss(log_sum, ranks, temperature, reduction)


def _checked_batch(z1: Tensor, z2: Tensor, group: Group) -> LocalBatch:
    checks.pair("z2", z2, "z1", z1)
    batch = batch_of(group, z1)
    if batch.total < 2:
        raise ValueError(f"z1: expected at least 2 rows, for one image has no negatives, got {tuple(z1.shape)}")
    return batch


class _TwoViews:
    """The 2N rows of two views, their positives and the log-sum-exp over their negatives in the batch."""

    def __init__(self, z1: Tensor, z2: Tensor, return_stats: bool, batch: LocalBatch):
        z1, z2 = as_computed(z1, z2)
        self.z, self.return_stats, self.batch = torch.cat([z1, z2]), return_stats, batch
        self.positive = calls.pair_similarity(z1, z2)  # (N,)
        self.image = batch.images(z1.device).repeat(2)

    def negatives_lse(self, temperature: Scalar) -> tuple[Tensor, Tensor]:
        positive = self.positive.repeat(2) if self.return_stats else None
        return self.batch.lse(self.z, self.z, IDS_DIFFER, temperature, (self.image, self.image), positive=positive)

    def loss(self, lse: Tensor, ranks: Tensor, temperature: Scalar, reduction: str, **options: Any) -> Loss:
        """`calls.positive_loss`, with the statistics where they are asked for."""
        loss = self.batch.positive_loss(lse, self.positive, temperature, reduction, **options)
        if not self.return_stats:
            return loss
        with torch.no_grad():
            loss_rows = calls.positive_loss(lse, self.positive, temperature, "none", **options)
            u, positive = unit_rows(self.z), self.positive.double()
            of_positives = total(positive)
            excluded, pairs = total(u.double() ** 2) + 2 * of_positives, u.shape[0] * (2 * self.batch.total - 2)
            mean, own = of_positives / positive.shape[0], u.sum(0)
        stats = _statistics.statistics(loss_rows, ranks, mean, (own, self.batch.sum(own)), excluded, pairs)
        return loss, self.batch.mean_stats(stats)
