"""MoCo v3 as published: Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers"."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from ... import checks
from .base import BatchNorms, TwoViewRecipe
from .linear_protocol import LinearProtocol
from .view import View

# main_moco.py: BYOL's views, of which one is always blurred and the other sometimes solarised.
FIRST_VIEW = View(
    order=("crop", "jitter", "gray", "blur", "flip"), crop_scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur_p=1.0
)
SECOND_VIEW = View(
    order=("crop", "jitter", "gray", "blur", "solarize", "flip"),
    crop_scale=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.2, 0.1),
    blur_p=0.1,
    solarize_p=0.2,
)
# CONFIG.md: a ViT sees crops as small as SimCLR's.
VIT_FIRST_VIEW = dataclasses.replace(FIRST_VIEW, crop_scale=(0.08, 1.0))
VIT_SECOND_VIEW = dataclasses.replace(SECOND_VIEW, crop_scale=(0.08, 1.0))


@dataclass(frozen=True)
class MoCoV3Recipe(TwoViewRecipe):
    """MoCo v3 with a ResNet-50 on ImageNet (Chen et al. 2021; facebookresearch/moco-v3 CONFIG.md): 68.9 % linear.

    That is after 100 epochs. After 300 with learning_rate 0.3: 72.8 %. After 1000 with learning_rate 0.3, weight_decay
    1.5e-6 and momentum 0.996: 74.6 %.

    Args:
        predictor_layers: Linear layers of the predictor, the MLP behind the head of the queries.
        predictor_width: Features between the layers of the predictor.
        predictor_batch_norm: Layers of the predictor that batch norm follows: none, the hidden ones, or all.
        momentum: Share of the key encoder's weights that stays at the first step; it rises to 1 along half a cosine.
        freeze_patch_projection: Whether a ViT's first layer stays as initialised (section 4.2 of the paper).
    """

    method: ClassVar[str] = "moco-v3"
    # facebookresearch/moco-v3 main_lincls.py and CONFIG.md.
    linear_protocol: ClassVar[LinearProtocol] = LinearProtocol(0.1, 1024, 90)

    batch_size: int = 4096
    image_size: int = 224
    head_width: int = 4096
    head_batch_norm: BatchNorms = "all"
    projection_dim: int = 256
    predictor_layers: int = 2
    predictor_width: int = 4096
    predictor_batch_norm: BatchNorms = "hidden"
    temperature: float = 1.0
    optimizer: Literal["sgd", "lars", "adamw"] = "lars"
    learning_rate: float = 0.6
    learning_rate_scale: Literal["none", "linear", "sqrt"] = "linear"
    weight_decay: float = 1e-6
    decay_all: bool = False
    warm_up_epochs: float = 10.0
    sync_batch_norm: bool = True
    view1: View = FIRST_VIEW
    view2: View = SECOND_VIEW
    momentum: float = 0.99
    freeze_patch_projection: bool = False

    def check(self) -> None:
        super().check()
        checks.momentum(self.momentum)


@dataclass(frozen=True)
class MoCoV3ViTRecipe(MoCoV3Recipe):
    """MoCo v3 with a ViT-S/16 of 12 heads on ImageNet (CONFIG.md): 73.2 % linear; vit_base_patch16_224: 76.7 %."""

    linear_protocol: ClassVar[LinearProtocol] = LinearProtocol(3.0, 1024, 90)

    epochs: int = 300
    encoder: str = "timm/vit_small_patch16_224,num_heads=12"
    head_layers: int = 3
    predictor_batch_norm: BatchNorms = "all"
    temperature: float = 0.2
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    learning_rate: float = 1.5e-4
    weight_decay: float = 0.1
    decay_all: bool = True
    warm_up_epochs: float = 40.0
    view1: View = VIT_FIRST_VIEW
    view2: View = VIT_SECOND_VIEW
    freeze_patch_projection: bool = True
