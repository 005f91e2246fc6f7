"""The numbers of a random view of an image.

`data/batch_augmentation.py` makes such views of batches on their device, `data/image_augmentation.py` of single images
in loader workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Operation = Literal["crop", "affine", "flip", "jitter", "gray", "blur", "solarize", "noise"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

Range = tuple[float, float]


@dataclass(frozen=True)
class View:
    """How one random view of an image is drawn: the operations in their order, each drawn anew for every image.

    The defaults are those of SimCLR (Chen et al. 2020, appendix A).

    Args:
        order: The operations, each at most once. An operation that is not named does not happen, whatever its numbers.
        crop_scale: Of "crop": smallest and largest share of the image's area that is cut out and resized.
        crop_ratio: Of "crop": smallest and largest width / height of what is cut out.
        flip_p: Probability of "flip", left to right. Data sets in which a mirrored image is another image, such as
            digits, are never flipped.
        jitter: Of "jitter": largest change of brightness, contrast, saturation and hue, made in random order.
        jitter_p: Probability of "jitter".
        gray_p: Probability of "gray".
        blur_p: Probability of "blur", whose Gaussian kernel is a tenth of the image's side wide.
        blur_sigma: Of "blur": smallest and largest standard deviation, in pixels.
        solarize_p: Probability of "solarize", which inverts values from one half on.
        shift: Of "affine": largest shift, in halves of the image's side.
        zoom: Of "affine": smallest and largest factor.
        rotation: Of "affine": largest angle, in degrees.
        noise: Of "noise": largest standard deviation, where white is 1.
    """

    order: tuple[Operation, ...] = ("crop", "flip", "jitter", "gray", "blur")
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip_p: float = 0.5
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: Range = (0.1, 2.0)
    solarize_p: float = 0.2
    shift: float = 0.2
    zoom: Range = (0.7, 1.3)
    rotation: float = 30.0
    noise: float = 0.1

    def check(self, name: str) -> None:
        """Checks the numbers.

        Args:
            name: What the recipe calls the view, for the message.

        Raises:
            ValueError: for a number that no view can have; the message begins with `name` and the field's name.
        """
        unknown = [operation for operation in self.order if operation not in OPERATIONS]
        if unknown or len(set(self.order)) != len(self.order):
            raise ValueError(f"{name}.order: expected some of {', '.join(OPERATIONS)}, each once, got {self.order}")
        for field in ("flip_p", "jitter_p", "gray_p", "blur_p", "solarize_p"):
            value = getattr(self, field)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}.{field}: expected a probability from 0 to 1, got {value}")
        for field in ("crop_scale", "crop_ratio", "blur_sigma", "zoom"):
            low, high = getattr(self, field)
            if not 0 < low <= high < math.inf or (field == "crop_scale" and high > 1):
                limit = " up to 1" if field == "crop_scale" else ""
                raise ValueError(f"{name}.{field}: expected a range of positive numbers{limit}, got {(low, high)}")
        brightness, contrast, saturation, hue = self.jitter
        if not all(0 <= value < math.inf for value in (brightness, contrast, saturation)) or not 0 <= hue <= 0.5:
            raise ValueError(f"{name}.jitter: expected numbers from 0, the hue's at most 0.5, got {self.jitter}")
        for field in ("shift", "rotation", "noise"):
            if not 0 <= getattr(self, field) < math.inf:
                raise ValueError(f"{name}.{field}: expected a finite number from 0, got {getattr(self, field)}")
