"""Instance discrimination as published: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from . import moco_v1
from .base import Recipe
from .linear_protocol import LinearProtocol
from .view import View


@dataclass(frozen=True)
class InstanceDiscriminationRecipe(Recipe):
    """Instance discrimination with a memory bank (Wu et al. 2018; zhirongw/lemniscate.pytorch main.py, --nce-k 4096).

    Args:
        bank_momentum: Share of an image's old row in the memory bank that stays when the image is seen again.
        noise: Images drawn for each row as negatives (noise-contrastive estimation); 0 takes all (the full softmax).
    """

    method: ClassVar[str] = "instdisc"
    # Wu et al. 2018 trained support vector machines. He et al. 2020 (figure 3) measured a memory bank by MoCo's
    # protocol.
    linear_protocol: ClassVar[LinearProtocol] = moco_v1.LINEAR

    epochs: int = 200
    encoder: str = "resnet18"
    image_size: int = 224
    head_layers: int = 1
    temperature: float = 0.07
    schedule: Literal["cosine", "step"] = "step"
    schedule_by: Literal["step", "epoch"] = "epoch"
    view1: View = moco_v1.VIEW  # MoCo v1 uses the augmentation of this method (He et al. 2020, section 3.3)
    bank_momentum: float = 0.5
    noise: int = 4096

    def check(self) -> None:
        super().check()
        if not 0 <= self.bank_momentum <= 1:
            raise ValueError(f"bank_momentum: expected a number from 0 to 1, got {self.bank_momentum}")
