"""The loss of rows with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.classes import dense, views_of
from ..formulas.rows import rows_of
from ..formulas.statistics import ContrastiveStats
from ..formulas.sums import softplus, total
from ..operators import calls
from ..operators.codes import IDS_DIFFER, IDS_EQUAL, NOT_SELF
from . import _statistics
from ._dispatch import Request, as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss, LossAndStats, Options, Temperature, Unpack


@overload
def supcon(
    features: Tensor, labels: Tensor | None = ..., temperature: Temperature = ..., *,
    return_stats: Literal[False] = ..., form: str = ..., count_without_positive: bool = ..., **o: Unpack[Options],
) -> Tensor: ...  # fmt: skip
@overload
def supcon(
    features: Tensor, labels: Tensor | None = ..., temperature: Temperature = ..., *,
    return_stats: Literal[True], form: str = ..., count_without_positive: bool = ..., **o: Unpack[Options],
) -> LossAndStats: ...  # fmt: skip
@overload
def supcon(
    features: Tensor, labels: Tensor | None = ..., temperature: Temperature = ..., *,
    return_stats: bool, form: str = ..., count_without_positive: bool = ..., **o: Unpack[Options],
) -> Loss: ...  # fmt: skip
def supcon(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: Any = 0.1,  # a Temperature
    *,
    reduction: str = "mean",
    normalize: bool = True,
    weights: Tensor | None = None,
    return_stats: bool = False,
    group: Group = None,
    form: str = "out",
    count_without_positive: bool = True,
) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020), without masks: positives are taken from class sums.

    With P(i) the other rows of row i's label, "out" (eq. 2, the usual one) is the mean over p in P(i) of
    logsumexp_{k != i}(u_i . u_k / temperature) - u_i . u_p / temperature; "in" (eq. 3) takes the log of the mean
    of the exponentials of the last term.

    Args:
        features: (N, D) embeddings with labels (N,); or (B, V, D), V views of each of B images.
        labels: (N,) or (B,) integers; None, of views only, makes each image its own class.
        temperature, reduction, normalize, return_stats: as for `nt_xent`; top-1 is whether the most similar row has
            the same label, and the best positives take a pass of their own.
        weights: (N,) or (B,) floats, one a row or an image.
        group: None or a process group, whose classes are gathered; no `Ring`.
        form: "out" or "in".
        count_without_positive: a row without positives has a loss of 0; whether the mean counts it.

    Returns:
        The loss, () or for "none" (N,), of views (B V,) with those of an image together. With return_stats
        (loss, ContrastiveStats).

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.

    Example:
        >>> loss = functional.supcon(torch.randn(256, 128), torch.arange(256) % 10, temperature=0.1)
    """
    checks.embeddings("features", features, (2, 3))
    if labels is not None:
        checks.ids("labels", labels, features.shape[:1], "features", features)
    elif features.dim() == 2:
        raise ValueError("labels: expected integers for features without views, (rows, dim), got None")
    checks.choice("form", form, checks.FORMS)
    checks.flags(count_without_positive=count_without_positive)
    request = Request(features, temperature, reduction, normalize, weights, return_stats, group, image_first=True)
    request.batch.refuse_ring("supcon, whose classes are gathered")
    if labels is None:
        labels = request.batch.images(features.device)
    if runs_reference("similarity_lse", features):
        return _reference(features, labels, form, count_without_positive, request)
    return _Classes(features, labels, request).loss(form, count_without_positive)


def _reference(features: Tensor, labels: Tensor, form: str, count_without_positive: bool, request: Request) -> Loss:
    tensors, options = {"features": features, "labels": labels}, {"temperature": request.temperature, "form": form}
    if request.batch.alone:
        return request.of_reference(
            reference.supcon, tensors, {**options, "count_without_positive": count_without_positive}
        )
    views = 1 if features.dim() == 2 else features.shape[1]
    alike = labels[:, None] == request.batch.in_order(labels)
    counted = None if count_without_positive else (views * alike.sum(1) > 1).repeat_interleave(views)
    return request.of_reference(reference.supcon, tensors, options, counted)


class _Classes:
    """The rank's rows z (N, D) with labels (N,), and all ranks' rows with theirs, the rank's own first."""

    def __init__(self, features: Tensor, labels: Tensor, request: Request):
        self.request = request
        self.z, self.labels = views_of(as_computed(features)[0], labels.long())
        self.rows, self.classes = request.batch.gather(self.z), request.batch.gather(self.labels)

    def loss(self, form: str, count_without_positive: bool) -> Loss:
        request = self.request
        best = None
        if request.return_stats:
            best = _statistics.best_same_class(
                self.z.detach(), self.labels, self.rows.detach(), self.classes, request.scale, request.normalize
            )
        inside, own = form == "in", slice(self.z.shape[0])
        rows = self.rows.detach() if inside else self.rows
        same, positives = (x[own] for x in calls.class_similarity(rows, self.classes, request.normalize))  # (N,)
        number = positives.clamp_min(1)
        # For "out" the log-sum-exp is over all other rows; for "in" over the negatives, and the positives have theirs.
        mask, ids = (IDS_DIFFER, (self.labels, self.labels)) if inside else (NOT_SELF, (None, None))
        normalize = (request.normalize, request.normalize)
        lse, above = request.batch.lse(self.z, self.z, mask, request.scale, ids, normalize, best)
        if inside:
            of_positives = self._positives_lse().masked_fill(positives == 0, 0.0)
            loss_rows = softplus(lse - of_positives) + number.to(lse.dtype).log()
        else:
            loss_rows = calls.positive_loss(lse, same / number, request.scale, "none", in_denominator=False)
        # A row without a positive has a loss of 0. A row that holds NaN has NaN, also where it is alone in its class.
        loss_rows = torch.where((positives > 0) | lse.isnan(), loss_rows.to(same.dtype), same.detach() * 0)
        loss = request.reduce(loss_rows, None if count_without_positive else positives > 0)
        if best is None:
            return loss
        with torch.no_grad():
            return loss, self._statistics(loss_rows, above, positives)

    def _positives_lse(self) -> Tensor:
        """Log-sum-exp of each row over the other rows of its label, here and on the other ranks."""
        normalize, scale, own = (self.request.normalize,) * 2, self.request.scale, self.z.shape[0]
        lse, _ = calls.similarity_lse(self.z, self.z, IDS_EQUAL, scale, (self.labels, self.labels), normalize)
        if self.rows.shape[0] == own:
            return lse
        ids = (self.labels, self.classes[own:])
        elsewhere, _ = calls.similarity_lse(self.z, self.rows[own:], IDS_EQUAL, scale, ids, normalize)
        # Where both are -Inf, logaddexp would have no gradient.
        return torch.logaddexp(lse.clamp_min(-1e300), elsewhere.clamp_min(-1e300))

    def _statistics(self, loss_rows: Tensor, above: Tensor, positives: Tensor) -> ContrastiveStats:
        batch, numbers = self.request.batch, dense(self.classes)
        u, v = (rows_of(x, self.request.normalize).double() for x in (self.z, self.rows))
        same, pairs = _statistics.equal_pairs(u, v, numbers[: u.shape[0]], numbers)
        number = positives.sum()
        positive_mean = torch.where(number > 0, (same - total(u * u)) / number, float("nan"))
        negatives = u.shape[0] * v.shape[0] - pairs
        stats = _statistics.statistics(loss_rows, above, positive_mean, (u.sum(0), v.sum(0)), same, negatives)
        return batch.mean_stats(stats, torch.stack([number, negatives]))
