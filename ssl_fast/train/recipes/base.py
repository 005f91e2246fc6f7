"""What all recipes have in common: the fields, their meaning, and what no run can have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from ... import checks
from .linear_protocol import LinearProtocol
from .view import View

# The smallest value of each whole number. FROM_ZERO: the numbers that may be any finite one from 0.
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
    """The numbers of a training run that every method has; a subclass adds those of its method.

    A recipe says what is computed. Where and how fast is said by engine.settings.Settings.

    Args:
        seed: Of the initial weights, the order of the images and all random views.
        epochs: Passes over the training images.
        batch_size: Images a step, over all processes together.
        accumulate: Batches whose gradients are averaged for one step of the optimiser, each with its own negatives.
        micro_batch: Images that go through the encoder at once; 0 takes the whole batch. The loss still sees the whole
            batch, so the gradient is the same, except that batch norm normalises each part by itself.
        encoder: small-WIDTH (five convolutions), a ResNet of torchvision, or timm/NAME.
        stem: Of a ResNet: "imagenet" is its own, "cifar" a 3x3 convolution without pooling.
        image_size: Side of the encoder's input in pixels; 0 takes the data set's own.
        normalize_images: Subtract the data set's mean and divide by its deviation; otherwise values are in [0, 1].
        head_layers: Linear layers of the projection head; 0 is no head.
        head_width: Features between the layers of the head; 0 takes as many as the encoder has.
        head_batch_norm: Layers of the head that batch norm follows: none, the hidden ones, or all.
        projection_dim: Columns of the embeddings that the loss compares.
        temperature: By which the loss divides similarities.
        optimizer: SGD, LARS or AdamW.
        learning_rate: The largest rate, before learning_rate_scale.
        learning_rate_scale: "linear" multiplies the rate by batch / 256, "sqrt" by the root of the batch, where the
            batch is batch_size * accumulate.
        optimizer_momentum: Of SGD and LARS.
        lars_trust: The trust coefficient of LARS.
        weight_decay: Of the optimiser.
        decay_all: Whether biases and the parameters of norms are decayed, and scaled by LARS, as well.
        schedule: "cosine" falls to 0 along half a cosine, "step" multiplies the rate by 0.1 at each milestone.
        schedule_by: Whether the rate changes at every step or at the beginning of every epoch.
        milestones: The epochs at which "step" lowers the rate.
        warm_up_epochs: Epochs over which the rate rises linearly from 0; at most half of the run.
        clip_gradient: Largest norm of the gradient; 0 leaves every gradient as it is.
        bn_groups: Parts of a process's batch that batch norm normalises separately.
        sync_batch_norm: Whether batch norm normalises the batches of all processes together.
        view1: How the first view of an image is drawn.
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
        """The views that a step needs of each image."""
        return (self.view1,)

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate after the warm-up, where the schedule is highest."""
        batch = self.batch_size * self.accumulate
        return (
            self.learning_rate
            * {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}[self.learning_rate_scale]
        )

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: for a number that no run can have; the message begins with the field's name.
            TypeError: for a temperature or momentum that is no number.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if name in LEAST and value < LEAST[name]:
                raise ValueError(f"{name}: expected at least {LEAST[name]}, got {value}")
            if name in FROM_ZERO and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number from 0, got {value}")
            if isinstance(value, View):
                value.check(name)
        if self.seed >= 2**63 - 1:  # the largest seed of torch's generators
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
    """The numbers of a method that compares two views of an image.

    Args:
        view2: How the second view of an image is drawn.
    """

    view2: View = VIEW

    @property
    def views(self) -> tuple[View, ...]:
        return self.view1, self.view2
