"""Losses of two views of each image: z1 and z2 (N, D), whose row i is of image i."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.loss_parts import hard_negative_log_sum, von_mises_fisher_weights
from ..formulas.rows import rows_of
from ..formulas.scalars import TEMPERATURES, in_range
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import by_pieces, total
from ..operators import calls
from ..operators.codes import IDS_DIFFER
from . import _statistics
from ._dispatch import Request, as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss, LossAndStats, Options, Scalar, Temperature, Unpack


@overload
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[False] = ..., **o: Unpack[Options]
) -> Tensor: ...
@overload
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[True], **o: Unpack[Options]
) -> LossAndStats: ...
@overload
def nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: bool, **o: Unpack[Options]
) -> Loss: ...
def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: Any = 0.1,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, eq. 1), without its 2N x 2N matrix.

    With u = normalize(cat([z1, z2])), each row against all others but itself:
    loss_i = logsumexp_{k != i}(u_i . u_k / temperature) - u_i . u_partner(i) / temperature.

    Args:
        z1: (N, D) embeddings of the first views.
        z2: (N, D) embeddings of the second views, row i of the same image as row i of z1.
        temperature: a number of size 1e-8 to 1e8, a 0-D tensor, or a module that returns one.
        reduction: "mean" or "sum" over the 2N rows' losses, or "none".
        normalize: whether the rows are normalised here; False takes them as they are.
        weights: (N,) floats, one an image: each of its losses is multiplied by it, and the mean divided by their sum.
        return_stats: whether `ContrastiveStats` are returned too.
        group: None, or the processes over which the batch is spread (`ssl_fast.parallel`).

    Returns:
        The loss, () or for "none" (2N,), those of z1 first; float32, or float64 for float64 inputs. With
        return_stats (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> z1, z2 = torch.randn(2, 256, 128, requires_grad=True)
        >>> loss = functional.nt_xent(z1, z2, temperature=0.1)
        >>> loss.backward()
    """
    checks.pair("z2", z2, "z1", z1)
    request = Request(z1, temperature, reduction, normalize, weights, return_stats, group)
    if runs_reference("nt_xent", z1):
        return request.of_reference(reference.nt_xent, {"z1": z1, "z2": z2}, {"temperature": request.temperature})
    if not normalize or not request.batch.alone:
        views = _TwoViews(z1, z2, request)
        return views.loss(*views.negatives_lse(request.scale))
    loss, stats = calls.nt_xent(z1, z2, request.scale, request.operator_reduction, return_stats)
    return request.result(request.finished(loss), stats)


@overload
def dcl(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[False] = ...,
    sigma: float | None = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def dcl(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[True],
    sigma: float | None = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def dcl(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: bool,
    sigma: float | None = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def dcl(
    z1: Tensor,
    z2: Tensor,
    temperature: Any = 0.1,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    sigma: float | None = None,
) -> Loss:
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): NT-Xent whose positive is not in the denominator.

    loss_i = logsumexp_{k != i, partner(i)}(u_i . u_k / temperature) - w_i u_i . u_partner(i) / temperature.

    Args:
        z1, z2: (N, D) embeddings, N at least 2, row i of both from the same image.
        temperature, reduction, normalize, weights, return_stats, group: as for `nt_xent`.
        sigma: None for w_i = 1 (DCL); a number for DCLW (eq. 7), w_i = 2 - N softmax(u_i . u_partner(i) / sigma) over
            the N pairs, without gradient.

    Returns:
        As `nt_xent`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = functional.dcl(*torch.randn(2, 256, 128), temperature=0.1, sigma=0.5)
    """
    request = _checked(z1, z2, temperature, reduction, normalize, weights, return_stats, group)
    if sigma is not None:
        checks.number("sigma", sigma, 1e-8)
    if runs_reference("similarity_lse", z1):
        options = {"temperature": request.temperature, "sigma": sigma}
        return request.of_reference(reference.dcl, {"z1": z1, "z2": z2}, options)
    views = _TwoViews(z1, z2, request)
    lse, above = views.negatives_lse(request.scale)
    pull = None
    if sigma is not None:
        positive = request.batch.gather(views.positive.detach())  # the rank's own rows come first
        pull = von_mises_fisher_weights(positive, sigma)[: z1.shape[0]]
    return views.loss(lse, above, positive_weights=pull, in_denominator=False)


@overload
def hard_negative_nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[False] = ...,
    beta: float = ..., tau_plus: float = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def hard_negative_nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: Literal[True],
    beta: float = ..., tau_plus: float = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def hard_negative_nt_xent(
    z1: Tensor, z2: Tensor, temperature: Temperature = ..., *, return_stats: bool,
    beta: float = ..., tau_plus: float = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def hard_negative_nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: Any = 0.5,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    beta: float = 1.0,
    tau_plus: float = 0.0,
) -> Loss:
    """Contrastive loss with hard negatives (Robinson et al. 2021, eq. 4), which weigh by their similarity.

    With n = exp(u_i . u_k / temperature) of the M = 2N - 2 negatives and p that of the positive:
    loss_i = log(1 + G / p), G = M (mean(n^(1 + beta)) / mean(n^beta) - tau_plus p) / (1 - tau_plus), which is kept
    at least M exp(-1 / |temperature|). Two log-sum-exps at two scales, so there is no matrix here either.

    Args:
        z1, z2: (N, D) embeddings, N at least 2, row i of both from the same image.
        temperature, reduction, normalize, weights, return_stats, group: as for `nt_xent`.
        beta: 0 weighs all negatives alike, larger numbers the similar ones more; temperature / (1 + beta) must be a
            temperature too.
        tau_plus: probability that a negative is of the same class, from 0 to below 1 (Chuang et al. 2020).

    Returns:
        As `nt_xent`.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = functional.hard_negative_nt_xent(*torch.randn(2, 256, 128), beta=0.5, tau_plus=0.1)
    """
    request = _checked(z1, z2, temperature, reduction, normalize, weights, return_stats, group)
    checks.number("beta", beta, 0.0)
    checks.number("tau_plus", tau_plus, 0.0, 1.0)
    if runs_reference("similarity_lse", z1):
        options = {"temperature": request.temperature, "beta": beta, "tau_plus": tau_plus}
        return request.of_reference(reference.hard_negative_nt_xent, {"z1": z1, "z2": z2}, options)
    scale = request.scale
    if isinstance(scale, Tensor):
        scale = in_range(scale)  # scale * beta may be in the range of the kernels where the scale itself is not
    else:
        checks.temperature(request.temperature / (1 + beta))
    views, negatives = _TwoViews(z1, z2, request), 2 * request.batch.total - 2
    lse, above = views.negatives_lse(scale * (1 + beta))
    # Each negative has the weight n^beta. Where scale * beta is below 1e-8 float32 cannot tell it from 1, and the log
    # of the weights' sum is that of the number of negatives.
    has_weights = beta > 0 and (isinstance(scale, Tensor) or abs(scale) * beta >= TEMPERATURES[0])
    log_weight_sum = views.negatives_lse(scale * beta)[0] if has_weights else lse.new_full((), negatives).log()
    log_mean, rest = lse - log_weight_sum, (scale, negatives, tau_plus)
    if tau_plus:
        positive_logits = calls.scores(views.positive, scale).repeat(2)
        log_sum = by_pieces(lambda mean, logits: hard_negative_log_sum(mean, logits, *rest), log_mean, positive_logits)
    else:
        log_sum = hard_negative_log_sum(log_mean, None, *rest)
    return views.loss(log_sum, above)


def _checked(
    z1: Tensor, z2: Tensor, temperature: Any, reduction: str, normalize: bool, weights: Tensor | None,
    return_stats: bool, group: Group,
) -> Request:  # fmt: skip
    """The checks of the losses that need two images."""
    checks.pair("z2", z2, "z1", z1)
    request = Request(z1, temperature, reduction, normalize, weights, return_stats, group)
    if request.batch.total < 2:
        raise ValueError(f"z1: expected at least 2 rows, for one image has no negatives, got {tuple(z1.shape)}")
    return request


class _TwoViews:
    """The 2N rows of two views, their positives and the log-sum-exp over their negatives in the batch."""

    def __init__(self, z1: Tensor, z2: Tensor, request: Request):
        z1, z2 = as_computed(z1, z2)
        self.z, self.request = torch.cat([z1, z2]), request  # (2N, D)
        self.positive = calls.pair_similarity(z1, z2, request.normalize, request.normalize)  # (N,)
        self.image = request.batch.images(z1.device).repeat(2)  # (2N,)

    def negatives_lse(self, scale: Scalar) -> tuple[Tensor, Tensor]:
        """(log-sum-exp over each row's negatives (2N,), how many of them are above its positive, or none)."""
        positive = self.positive.repeat(2) if self.request.return_stats else None
        normalize, ids = (self.request.normalize,) * 2, (self.image, self.image)
        return self.request.batch.lse(self.z, self.z, IDS_DIFFER, scale, ids, normalize, positive)

    def loss(
        self,
        lse: Tensor,
        above: Tensor,
        positive_weights: Tensor | None = None,
        in_denominator: bool = True,
    ) -> Loss:
        """What the loss returns, from the log-sum-exp over the negatives; options of `calls.positive_loss`."""
        loss = self.request.positive_loss(
            lse, self.positive, positive_weights=positive_weights, in_denominator=in_denominator
        )
        if not self.request.return_stats:
            return loss
        with torch.no_grad():
            loss_rows = calls.positive_loss(
                lse, self.positive, self.request.scale, "none", positive_weights, in_denominator
            )
            return loss, self._statistics(loss_rows, above)

    def _statistics(self, loss_rows: Tensor, above: Tensor) -> ContrastiveStats:
        batch, u = self.request.batch, rows_of(self.z, self.request.normalize)
        of_positives = total(self.positive.double())
        # Not negatives: a row with itself, and with its partner, from both sides.
        excluded, pairs = total(u.double() ** 2) + 2 * of_positives, u.shape[0] * (2 * batch.total - 2)
        own = u.sum(0)
        stats = _statistics.statistics(
            loss_rows, above, of_positives / self.positive.shape[0], (own, batch.sum(own)), excluded, pairs
        )
        return batch.mean_stats(stats)
