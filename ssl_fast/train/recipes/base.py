"""What all recipes have in common: the fields, their meaning, and what no run can have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from ... import checks
from .linear_protocol import LinearProtocol
from .view import View

LEAST = {
    "seed": 0,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "micro_batch": 0,
    "image_size": 0,
    "bn_groups": 1,
    "projection_dim": 1,
    "head_layers": 0,
    "head_width": 0,
    "predictor_layers": 0,
    "predictor_width": 1,
    "queue_size": 1,
    "noise": 0,
}
FROM_ZERO = ("learning_rate", "weight_decay", "warm_up_epochs", "clip_gradient", "lars_trust")
VIEW = View()  # its defaults are those of SimCLR
BatchNorms = Literal["none", "hidden", "all"]


@dataclass(frozen=True)
class Recipe:
    """What all methods need.

    batch_size: images a step, over all processes. accumulate: batches whose gradients are averaged for one step of
    the optimiser. micro_batch: the batch goes through the encoder in parts of so many images, with the batch's
    exact gradient (0: whole); batch normalisation then sees the parts.
    encoder: small-WIDTH, a ResNet of torchvision, or timm/NAME. stem: of a ResNet; cifar is a 3x3 convolution
    without pooling. image_size: side of the encoder's input, 0 the data's own. normalize_images: by mean and deviation.
    head_layers, head_width, head_batch_norm, projection_dim: the projection head: 0 layers is none, width 0 the
    features' own; batch norm after hidden or all layers.
    optimizer, learning_rate, learning_rate_scale: the rate is learning_rate, * batch / 256 (linear) or
    * sqrt(batch) (sqrt). decay_all: also biases and norms, which otherwise have no decay and no LARS.
    schedule: cosine to 0, or step: * 0.1 at the milestones (epochs). schedule_by: where the rate changes.
    warm_up_epochs: linear, from 0. clip_gradient: largest norm, 0 without limit.
    bn_groups: parts of the batch normalised apart, per process. sync_batch_norm: over all processes instead.
    """

    method: ClassVar[str]  # of models.METHODS
    linear_protocol: ClassVar[LinearProtocol]  # how the paper measures the method's features

    seed: int = 0
    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    micro_batch: int = 0
    encoder: str = "resnet50"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    image_size: int = 0
    normalize_images: bool = True
    head_layers: int = 2
    head_width: int = 0
    head_batch_norm: BatchNorms = "none"
    projection_dim: int = 128
    temperature: float = 0.1
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    learning_rate: float = 0.03
    learning_rate_scale: Literal["none", "linear", "sqrt"] = "none"
    optimizer_momentum: float = 0.9
    lars_trust: float = 0.001
    weight_decay: float = 1e-4
    decay_all: bool = True
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "step"
    milestones: tuple[int, ...] = (120, 160)
    warm_up_epochs: float = 0.0
    clip_gradient: float = 0.0
    bn_groups: int = 1
    sync_batch_norm: bool = False
    view1: View = VIEW

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an image that a step needs."""
        return (self.view1,)

    @property
    def scaled_learning_rate(self) -> float:
        """The largest rate of the schedule."""
        batch = self.batch_size * self.accumulate
        return (
            self.learning_rate
            * {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[self.learning_rate_scale]
        )

    def check(self) -> None:
        """Raises ValueError or TypeError, naming the field, for a number that no run can have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if name in LEAST and value < LEAST[name]:
                raise ValueError(f"{name}: expected at least {LEAST[name]}, got {value}")
            if name in FROM_ZERO and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0, got {value}")
            if isinstance(value, View):
                value.check(name)
        if self.seed >= 2**63 - 1:  # torch's generators take no more
            raise ValueError(f"seed: expected less than 2^63 - 1, got {self.seed}")
        if not 0 <= self.optimizer_momentum < 1:
            raise ValueError(f"optimizer_momentum: expected a number from 0 to below 1, got {self.optimizer_momentum}")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones: expected rising epochs from 1, got {self.milestones}")
        if self.batch_size % self.bn_groups:
            raise ValueError(f"bn_groups: expected a divisor of the batch of {self.batch_size}, got {self.bn_groups}")
        if self.bn_groups > 1 and self.sync_batch_norm:
            raise ValueError("bn_groups: expected 1 with sync_batch_norm, which normalises all together")
        if self.micro_batch and self.micro_batch % self.bn_groups:
            raise ValueError(
                f"micro_batch: expected a multiple of the {self.bn_groups} bn_groups, got {self.micro_batch}"
            )
        checks.temperature(self.temperature)


@dataclass(frozen=True)
class TwoViewRecipe(Recipe):
    """What the methods need that compare two views of an image."""

    view2: View = VIEW

    @property
    def views(self) -> tuple[View, ...]:
        return self.view1, self.view2
