"""The loss of rows with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import checks, reference
from ..formulas.classes import dense, views_of
from ..formulas.rows import unit_rows
from ..formulas.sums import softplus, total
from ..operators import calls
from ..operators.codes import IDS_DIFFER, IDS_EQUAL, NOT_SELF
from ..parallel.batch import batch_of
from ..parallel.gathered import GatheredBatch
from ..parallel.local import LocalBatch
from ..parallel.ring import RingBatch
from . import _statistics
from ._dispatch import as_computed, runs_reference

if TYPE_CHECKING:
    from ..annotations import Group, Loss, Scalar


def supcon(
    features: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    form: str = "out",
    count_without_positive: bool = True,
    reduction: str = "mean",
    return_stats: bool = False,
    group: Group = None,
) -> Loss:
    """Supervised contrastive loss (Khosla et al. 2020), without masks: positives are taken from class sums.

    With P(i) the other rows of row i's label, "out" (eq. 2, the usual one) is the mean over p in P(i) of
    logsumexp_{k != i}(u_i . u_k / temperature) - u_i . u_p / temperature; "in" (eq. 3) takes the log of the mean
    of the exponentials of the last term.

    features: (N, D) with labels (N,), integers; or (B, V, D), V views of each of B images, with labels (B,) or
        None, each image its own class.
    count_without_positive: a row without positives has a loss of 0; whether the mean counts it.
    Statistics: top-1 is whether the most similar row has the same label; the best positives take a pass of their
    own. The rows' losses: (N,), of (B, V, D) (B V,) with the views of an image together.
    """
    checks.embeddings("features", features, (2, 3))
    if labels is not None:
        checks.ids("labels", labels, features.shape[:1], "features", features)
    elif features.dim() == 2:
        raise ValueError("labels: expected integers for features without views, (rows, dim), got None")
    temperature = checks.temperature(temperature, features.device)
    checks.choice("form", form, checks.FORMS)
    checks.reduction(reduction)
    checks.flags(count_without_positive=count_without_positive, return_stats=return_stats)
    batch = batch_of(group, features)
    if isinstance(batch, RingBatch):
        raise ValueError("group: expected a process group for supcon, whose classes are gathered, got a Ring")
    if labels is None:
        labels = batch.images(features.device)
    if runs_reference("similarity_lse", features):
        options = {"temperature": temperature, "form": form}
        return _supcon_reference(features, labels, options, count_without_positive, reduction, return_stats, batch)
    z, labels = views_of(as_computed(features)[0], labels.long())
    rows, classes = batch.gather(z), batch.gather(labels)
    best = None
    if return_stats:
        best = _statistics.best_same_class(z.detach(), labels, rows.detach(), classes, temperature)
    if form == "out":
        same, positives = (x[: z.shape[0]] for x in calls.class_similarity(rows, classes))
        lse, ranks = batch.lse(z, z, NOT_SELF, temperature, positive=best)
        mean = same / positives.clamp_min(1)
        loss_rows = calls.positive_loss(lse, mean, temperature, "none", in_denominator=False)
    else:
        same, positives = (x[: z.shape[0]] for x in calls.class_similarity(rows.detach(), classes))
        lse, ranks = batch.lse(z, z, IDS_DIFFER, temperature, (labels, labels), positive=best)
        of_positives = _positives_lse(z, labels, rows[z.shape[0] :], classes[z.shape[0] :], temperature)
        of_positives = of_positives.masked_fill(positives == 0, 0.0)
        loss_rows = softplus(lse - of_positives) + positives.clamp_min(1).to(lse.dtype).log()
    # Without a positive 0; a row that is NaN stays NaN, alone too.
    nothing = calls.pair_similarity(z.detach(), z.detach()) * 0
    loss_rows = torch.where((positives > 0) | lse.isnan(), loss_rows.to(same.dtype), nothing)
    loss = batch.reduce(loss_rows, reduction, None if count_without_positive else positives > 0)
    if not return_stats:
        return loss
    with torch.no_grad():
        u, v, numbers = unit_rows(z).double(), unit_rows(rows).double(), dense(classes)
        same, pairs = _statistics.equal_pairs(u, v, numbers[: u.shape[0]], numbers)
        number = positives.sum()
        positive_mean = torch.where(number > 0, (same - total(u * u)) / number, float("nan"))
        negatives = u.shape[0] * v.shape[0] - pairs
        stats = _statistics.statistics(loss_rows, ranks, positive_mean, (u.sum(0), v.sum(0)), same, negatives)
    return loss, batch.mean_stats(stats, torch.stack([number, negatives]))


def _positives_lse(z: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, temperature: Scalar) -> Tensor:
    """Log-sum-exp of each row over the other rows of its label, here and on the other ranks."""
    lse, *_ = calls.similarity_lse(z, None, IDS_EQUAL, temperature, (labels, None))
    if not others.shape[0]:
        return lse
    elsewhere, *_ = calls.similarity_lse(z, others, IDS_EQUAL, temperature, (labels, other_labels))
    # -Inf where there is none, twice, has no gradient.
    return torch.logaddexp(lse.clamp_min(-1e300), elsewhere.clamp_min(-1e300))


def _supcon_reference(
    features: Tensor,
    labels: Tensor,
    options: Any,
    count_without_positive: bool,
    reduction: str,
    return_stats: bool,
    batch: LocalBatch,
) -> Loss:
    if not isinstance(batch, GatheredBatch):
        return reference.supcon(features, labels, **options, count_without_positive=count_without_positive,
                                reduction=reduction, return_stats=return_stats)  # fmt: skip
    views = 1 if features.dim() == 2 else features.shape[1]
    alike = labels[:, None] == batch.in_order(labels)
    counted = None if count_without_positive else (views * alike.sum(1) > 1).repeat_interleave(views)
    tensors = {"features": features, "labels": labels}
    return batch.of_reference(reference.supcon, tensors, options, reduction, return_stats, counted, image_first=True)
