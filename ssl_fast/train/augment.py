"""Random augmentation, different for each sample, of a whole batch at once on its device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Dataset

SHIFT = 0.2  # largest shift, in halves of the image's side
SCALE = (0.7, 1.3)
ROTATION = math.radians(30)
BRIGHTNESS = (0.6, 1.4)
NOISE = 0.1  # largest standard deviation, where white is 1


class Augment:
    """Makes encoder inputs from a data set's images: (N, C, H, W) uint8 to (N, C, S, S) float32 in [0, 1].

    S is the data set's image_size. Randomness comes only from the generator given, which lives on
    the images' device: the same state gives the same result.
    """

    def __init__(self, dataset: Dataset):
        self.image_size = dataset.image_size
        self.enlarge = dataset.enlarge
        self.flip = dataset.flip

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view: shift, scale, rotation, brightness, noise, and flip where it suits the data."""
        views = self._moved(images, generator, self.flip)
        views = views * _uniform(views, generator, *BRIGHTNESS)[:, None, None, None]
        deviation = _uniform(views, generator, 0, NOISE)[:, None, None, None]
        noise = torch.randn(views.shape, generator=generator, device=views.device)
        return (views + deviation * noise).clamp(0, 1)

    def transform_test(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Shift, scale and rotation only: what an invariant encoder does not see."""
        return self._moved(images, generator, flip=False)

    def plain(self, images: Tensor) -> Tensor:
        """The images themselves, enlarged and padded."""
        x = images.float() / 255
        if self.enlarge != 1:
            x = F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        missing_rows, missing_columns = self.image_size - x.shape[2], self.image_size - x.shape[3]
        top, left = missing_rows // 2, missing_columns // 2
        return F.pad(x, (left, missing_columns - left, top, missing_rows - top))

    def _moved(self, images: Tensor, generator: torch.Generator, flip: bool) -> Tensor:
        x = self.plain(images)
        scale = _uniform(x, generator, *SCALE)
        angle = _uniform(x, generator, -ROTATION, ROTATION)
        shift_x, shift_y = (_uniform(x, generator, -SHIFT, SHIFT) for _ in range(2))
        mirror = torch.ones_like(scale)
        if flip:
            mirror = mirror - 2 * torch.randint(2, scale.shape, generator=generator, device=x.device)
        # affine_grid asks where each output pixel comes from: the inverse, hence 1 / scale.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        rows = [torch.stack([cos * mirror, -sin, shift_x], 1), torch.stack([sin * mirror, cos, shift_y], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def _uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """(N,) draws, one an image."""
    return low + (high - low) * torch.rand(len(images), generator=generator, device=images.device)
