"""Drop-in for HobbitLong/SupContrast (commit 66a8fe5): its SupConLoss.

from ssl_fast.compat.supcontrast import SupConLoss  # was: from losses import SupConLoss
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..formulas.classes import dense
from ..formulas.rows import in_full_precision, upcast
from ..formulas.sums import total

PACKAGE = "losses"  # the file losses.py of their checkout
DISTRIBUTION = None
VERSIONS = ()
REPLACES = {"losses": ("SupConLoss",)}


class SupConLoss(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2) times temperature / base_temperature: equals theirs.

    Features are taken as they are: normalise them before. Anchors without a positive are 0 and count in the mean.
    contrast_mode: "all" views are anchors, or "one", the first. Every anchor is against all views but itself.

    Memory is O(rows x dim) beside a mask that was given: positives are taken from sums of features, negatives from
    `functional.similarity_lse`. Float32 for half features. Where theirs is Inf or NaN, with anchors much longer than
    their similarities with others or a single row, ours is finite.
    """

    def __init__(self, temperature: float = 0.07, contrast_mode: str = "all", base_temperature: float = 0.07):
        super().__init__()
        self.temperature = temperature
        self.contrast_mode = contrast_mode
        self.base_temperature = base_temperature

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """features: (B, V, ...), V views of each image, flattened to (B, V, D).

        labels: (B,) of any dtype, equal ones are positives. mask: (B, B), mask_ij whether image j is a positive of
        image i, or how much it weighs; it need not be symmetric. Neither: an image's other views (SimCLR).
        Raises ValueError for features without views, labels and a mask, another number of labels, another mode.
        """
        if features.dim() < 3:
            raise ValueError("`features` needs to be [bsz, n_views, ...],at least 3 dimensions are required")
        if labels is not None and mask is not None:
            raise ValueError("Cannot define both `labels` and `mask`")
        if labels is not None and len(labels := labels.reshape(-1)) != len(features):
            raise ValueError("Num of labels does not match num of features")
        if self.contrast_mode not in ("all", "one"):
            raise ValueError(f"Unknown mode: {self.contrast_mode}")
        features = features.flatten(2)
        count, views, _ = features.shape
        scale = 1 / self.temperature
        positives = _positives(upcast(features).sum(1), labels, mask)
        rows = features.flatten(0, 1)
        if self.contrast_mode == "all":
            anchors = rows
            lse = functional.similarity_lse(rows, rows, scale, exclude="self", normalize=False)
            sums, weight, itself = (x.repeat_interleave(views, 0) for x in positives)
        else:
            anchors, image = features[:, 0], torch.arange(count, device=features.device)
            first_view = torch.arange(views, device=features.device) == 0
            ids = torch.where(first_view, image[:, None], -1).flatten()  # only itself does not count
            lse = functional.similarity_lse(anchors, rows, scale, exclude=(image, ids), normalize=False)
            sums, weight, itself = positives
        anchors = upcast(anchors)
        same = (anchors * (sums - itself[:, None] * anchors)).sum(1) * scale
        number = views * weight - itself
        # A single row has a log-sum-exp of -Inf, and no positive.
        loss_rows = (number * lse.clamp_min(torch.finfo(lse.dtype).min) - same) / torch.where(number < 1e-6, 1, number)
        return self.temperature / self.base_temperature * total(loss_rows) / len(loss_rows)


@in_full_precision
def _positives(images: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(sums (B, D) of each image's positives and itself, how much they weigh (B,), how much of that is itself (B,)).

    images: (B, D), the sums of their views.
    """
    if mask is not None:
        if mask.shape != (len(images), len(images)):
            raise ValueError(f"mask: expected ({len(images)}, {len(images)}), got {tuple(mask.shape)}")
        mask = mask.to(images)
        return mask @ images, mask.sum(1), mask.diagonal()
    one = images.new_ones(len(images))
    if labels is None:
        return images, one, one
    classes = dense(labels.to(images.device))
    return _of_classes(images, classes), _of_classes(one, classes), one


def _of_classes(x: Tensor, classes: Tensor) -> Tensor:
    """For each row of x (B, ...) the sum over the rows of its class; the same bits at any thread count."""
    empty = torch.zeros_like(x)
    if x.is_cuda:  # where index_add is atomic
        return empty.index_put((classes,), x, accumulate=True)[classes]
    return empty.index_add(0, classes, x).index_select(0, classes)
