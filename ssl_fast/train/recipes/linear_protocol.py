"""How a paper trains the linear classifier that measures its features."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LinearProtocol:
    """The numbers of a linear evaluation: cross-entropy and SGD on the features of a frozen encoder.

    Args:
        learning_rate: The rate, or the rate of a batch of 256 with learning_rate_scale "linear".
        batch_size: Images a step.
        epochs: Passes over the training images.
        learning_rate_scale: "linear" multiplies the rate by batch_size / 256, "none" leaves it.
        schedule: "cosine" falls to 0 along half a cosine, "step" multiplies the rate by 0.1 at each milestone.
        schedule_by: Whether the rate changes at every step or at the beginning of every epoch.
        milestones: The epochs at which "step" lowers the rate.
        momentum: Of SGD.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: Of SGD, on weights and bias.

    Raises:
        ValueError: for a batch or epochs below 1, or a rate that is not a finite number above 0.
    """

    learning_rate: float
    batch_size: int
    epochs: int
    learning_rate_scale: Literal["none", "linear"] = "linear"
    schedule: Literal["cosine", "step"] = "cosine"
    schedule_by: Literal["step", "epoch"] = "epoch"
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite number above 0, got {self.learning_rate}")

    def rate(self, progress: float) -> float:
        """Returns the learning rate after `progress` epochs; 2.5 is the middle of the third epoch."""
        rate = self.learning_rate * (self.batch_size / 256 if self.learning_rate_scale == "linear" else 1.0)
        reached = math.floor(progress) if self.schedule_by == "epoch" else progress
        if self.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * reached / self.epochs))
        return rate * 0.1 ** sum(reached >= milestone for milestone in self.milestones)

    def fitted(self, rows: int) -> LinearProtocol:
        """Returns the protocol for `rows` training images: the batch is no larger, and a linear rate scales with it."""
        return dataclasses.replace(self, batch_size=min(self.batch_size, rows))
