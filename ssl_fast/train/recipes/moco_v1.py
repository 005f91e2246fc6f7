"""MoCo v1 as published: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ... import checks
from .base import TwoViewRecipe
from .linear_protocol import LinearProtocol
from .view import View

# main_moco.py without --aug-plus: grey comes before the colour jitter, which every image gets.
VIEW = View(order=("crop", "gray", "jitter", "flip"), crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0)
# facebookresearch/moco main_lincls.py.
LINEAR = LinearProtocol(30.0, 256, 100, learning_rate_scale="none", schedule="step", milestones=(60, 80))


@dataclass(frozen=True)
class MoCoV1Recipe(TwoViewRecipe):
    """MoCo v1 on ImageNet (He et al. 2020; facebookresearch/moco main_moco.py): 60.6 % linear.

    The original shuffles its keys over eight GPUs, each of which normalises its own part of the batch. bn_groups is 8
    for the same on one device; with eight processes bn_groups 1 is the same.

    Args:
        momentum: Share of the key encoder's weights that stays at each step.
        queue_size: Past keys in the queue, the negatives of every query.
        queue_dtype: In which the queue stores its keys.
    """

    method: ClassVar[str] = "moco"
    linear_protocol: ClassVar[LinearProtocol] = LINEAR

    epochs: int = 200
    image_size: int = 224
    head_layers: int = 1
    temperature: float = 0.07
    schedule: Literal["cosine", "step"] = "step"
    schedule_by: Literal["step", "epoch"] = "epoch"
    bn_groups: int = 8
    view1: View = VIEW
    view2: View = VIEW
    momentum: float = 0.999
    queue_size: int = 65536
    queue_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def check(self) -> None:
        super().check()
        checks.momentum(self.momentum)
