"""What each method is trained with: published numbers where they carry over, the reason where they do not.

The papers train a ResNet-50 on 1.3 million images; the defaults here train a small encoder on the
1437 training digits in about a minute.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """What both methods need.

    learning_rate, weight_decay: of AdamW. Published: LARS 0.3 * batch_size / 256 (SimCLR), SGD 0.03
    (MoCo v2); both suit 100 and more epochs of 5000 steps, not the 300 steps here.
    projection_dim: 128 in both papers. width: channels of the encoder's last layers.
    """

    seed: int = 0
    epochs: int = 60
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 0.2
    projection_dim: int = 128
    width: int = 128


@dataclass(frozen=True)
class SimCLR(Recipe):
    """SimCLR (Chen et al. 2020): batch 4096, temperature 0.1 on ImageNet and 0.5 on CIFAR-10."""


@dataclass(frozen=True)
class MoCoV2(Recipe):
    """MoCo v2 (Chen et al. 2020): batch 256, temperature 0.2, momentum 0.999, queue 65536.

    momentum: 0.999 averages over 1000 steps, more than a run here has.
    queue_size: a queue longer than the data holds every image again, as a negative of itself.
    """

    momentum: float = 0.99
    queue_size: int = 1024


RECIPES: dict[str, type[Recipe]] = {"simclr": SimCLR, "moco-v2": MoCoV2}
