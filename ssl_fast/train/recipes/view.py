"""What a random view of an image is made of: numbers only, as the papers give them.

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
    """The operations of one view, in their order, each drawn anew for every image.

    order: which operations, each once. Those that are not named do not happen, whatever their numbers.
    crop_scale, crop_ratio: share of the area and width / height of "crop", a resized crop.
    flip_p: of "flip", left to right; never on data where a mirrored image is another one (digits).
    jitter: largest change of brightness, contrast, saturation and hue of "jitter", in random order; jitter_p.
    gray_p: of "gray". blur_p, blur_sigma (pixels): of "blur", Gaussian, over a tenth of the image's side.
    solarize_p: of "solarize", which inverts values from one half on.
    shift (halves of the side), zoom, rotation (degrees): of "affine", for small greyscale images.
    noise: largest standard deviation of "noise", where white is 1.
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
        """Raises ValueError that names the field of the view `name`."""
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
