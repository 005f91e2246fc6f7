"""What each method is trained with: published numbers where they carry over, the reason where they do not.

The papers train a ResNet-50 on 1.3 million images; the defaults here train a small encoder on the
1437 training digits in a minute or two.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from .. import checks

LEAST = {"seed": 0, "epochs": 1, "batch_size": 1, "projection_dim": 1, "width": 4, "queue_size": 1}


@dataclass(frozen=True)
class Recipe:
    """What both methods need.

    learning_rate, weight_decay: of AdamW. Published: LARS 0.3 * batch_size / 256 (SimCLR), SGD 0.03
    (MoCo v2); both suit 100 and more epochs of 5000 steps, not the few hundred steps here.
    projection_dim: 128 in both papers. width: channels of the encoder's last layers, a multiple of 4.
    """

    seed: int = 0
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    temperature: float = 0.1
    projection_dim: int = 128
    width: int = 128

    def check(self) -> None:
        """Raises ValueError or TypeError, naming the field, for a number that no run can have."""
        numbers = dataclasses.asdict(self)
        for name, value in numbers.items():
            if value < LEAST.get(name, -math.inf):
                raise ValueError(f"{name}: expected at least {LEAST[name]}, got {value}")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= numbers[name] < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0, got {numbers[name]}")
        if self.seed >= 2**63 - 1:  # torch's generators take no more
            raise ValueError(f"seed: expected less than 2^63 - 1, got {self.seed}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {self.width}")
        checks.temperature(self.temperature)


@dataclass(frozen=True)
class SimCLR(Recipe):
    """SimCLR (Chen et al. 2020): batch 4096, temperature 0.1 on ImageNet and 0.5 on CIFAR-10."""


@dataclass(frozen=True)
class MoCoV2(Recipe):
    """MoCo v2 (Chen et al. 2020): batch 256, temperature 0.2, momentum 0.999, queue 65536.

    epochs: more than SimCLR's, each of half as many encoded views with a gradient.
    temperature: 0.1, as for SimCLR; with 0.2 a run this short ends behind it.
    momentum: 0.999 averages over 1000 steps, more than a run here has.
    queue_size: a queue longer than the data holds every image again, as a negative of itself.
    """

    epochs: int = 160
    momentum: float = 0.99
    queue_size: int = 512

    def check(self) -> None:
        super().check()
        checks.momentum(self.momentum)


RECIPES: dict[str, type[Recipe]] = {"simclr": SimCLR, "moco-v2": MoCoV2}
