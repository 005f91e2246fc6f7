"""open_clip's ClipLoss and SigLipLoss, subclasses of its own whose losses need no matrix of logits.

    from ssl_fast.compat.open_clip import ClipLoss  # was: from open_clip import ClipLoss

Nothing is normalised here, as there. Half inputs give a float32 loss. A subclass that overrides get_logits or
get_ground_truth (SigLipLoss: or _loss) is computed by open_clip's own code, which calls them.
"""

from __future__ import annotations

import warnings
from typing import Any

import open_clip.loss as theirs
import torch
import torch.distributed as dist
from torch import Tensor

from ..functional import clip, siglip
from ..functional.queries import info_nce_of_scale
from .inputs import one_dtype, scalar
from .own_path import say_own_path

PACKAGE = "open_clip"
DISTRIBUTION = "open_clip_torch"
VERSIONS = ("3.3",)
REPLACES = {"open_clip.loss": ("ClipLoss", "SigLipLoss")}


class ClipLoss(theirs.ClipLoss):
    """CLIP's symmetric loss (Radford et al. 2021), with the signature, attributes and gradients of open_clip 3.3.

    With world_size W > 1 the features' gradient, after DistributedDataParallel's mean over the ranks, is with
    local_loss and gather_with_grad the exact one of the global batch; with gather_with_grad alone too, but each rank
    computes the whole batch; with neither, the default, that / W; with local_loss alone a part is missing, and a
    warning says so.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod)
        if world_size > 1 and local_loss and not gather_with_grad:
            message = "local_loss without gather_with_grad: gradients lack what other ranks' losses say of these rows"
            warnings.warn(message, stacklevel=2)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """image_features, text_features: (N, D). logit_scale: a number or a tensor of one element, gets its gradient.

        logit_bias: cancels in the softmax; its gradient is 0. Returns the loss, or {"contrastive_loss": loss}.
        """
        if not _is_fused(self, theirs.ClipLoss, "get_logits", "get_ground_truth", logit_scale, logit_bias):
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        image_features, text_features = _one_dtype(image_features, text_features)
        # The bias cancels: its gradient is 0. One that is not finite makes all NaN, as in the logits.
        scale = scalar(logit_scale) + 0 * (0.0 if logit_bias is None else scalar(logit_bias))
        if self.world_size > 1:
            loss = self._across(image_features, text_features, scale)
        else:
            loss = clip(image_features, text_features, logit_scale=scale, normalize=False)
        return {"contrastive_loss": loss} if output_dict else loss

    def _across(self, images: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
        all_images, all_texts = theirs.gather_features(
            images, texts, self.local_loss, self.gather_with_grad, self.rank, self.world_size, self.use_horovod
        )
        if not self.local_loss:
            return clip(all_images, all_texts, logit_scale=scale, normalize=False)
        count = images.shape[0]
        own = torch.arange(self.rank * count, (self.rank + 1) * count, device=images.device)
        ids = own, torch.arange(all_images.shape[0], device=images.device)
        of_images = info_nce_of_scale(images, all_texts[own], all_texts, scale, exclude=ids, normalize=False)
        of_texts = info_nce_of_scale(texts, all_images[own], all_images, scale, exclude=ids, normalize=False)
        return (of_images + of_texts) / 2


class SigLipLoss(theirs.SigLipLoss):
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023), its signature and attributes open_clip 3.3's.

    With world_size > 1 the rank's images meet the texts of all ranks of the default process group. Every dist_impl has
    the same loss and gradients, and here the same way: one gather.
    """

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Any:
        """image_features, text_features: (N, D). logit_scale, logit_bias: numbers or tensors of one element.

        Both get their gradient; None is a bias of 0. Returns the loss, or {"contrastive_loss": loss}.
        """
        hooks = "get_logits", "get_ground_truth", "_loss"
        if not _is_fused(self, theirs.SigLipLoss, *hooks, logit_scale, logit_bias):
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        image_features, text_features = _one_dtype(image_features, text_features)
        bias = 0.0 if logit_bias is None else scalar(logit_bias)
        # Not dist.group.WORLD, which is None without a process group.
        group = dist.distributed_c10d._get_default_group() if self.world_size > 1 else None
        loss = siglip(
            image_features,
            text_features,
            logit_scale=scalar(logit_scale),
            bias=bias,
            normalize=False,
            group=group,
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _is_fused(loss: Any, base: type, *rest: Any) -> bool:
    """Whether no subclass overrides these methods of the base, and scale and bias, the last two, are of one element."""
    *methods, scale, bias = rest
    if any(getattr(type(loss), name) is not getattr(base, name) or name in vars(loss) for name in methods):
        say_own_path("open_clip", f"an override of {', '.join(methods)}")
        return False
    if any(isinstance(x, Tensor) and x.numel() != 1 for x in (scale, bias)):
        say_own_path("open_clip", "a logit_scale or logit_bias of several elements")
        return False
    return True


def _one_dtype(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Under autocast the two towers may end in different types, which its matmul makes one."""
    if images.dtype == texts.dtype or not torch.is_autocast_enabled(images.device.type):
        return images, texts
    images, texts = one_dtype(images, texts)
    return images, texts
