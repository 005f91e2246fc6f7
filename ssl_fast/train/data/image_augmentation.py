"""Random views of single images by torchvision, for folders of images that loader workers read.

The same operations as in batch_augmentation.py, with the same distributions. Randomness is PyTorch's global one, which a worker
seeds for each image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..recipes.view import Operation, View
from . import batch_augmentation

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
# These work on float images: what comes before them is done by PIL, which is faster.
ON_FLOATS = ("affine", "blur", "solarize", "noise")


def transform(view: View, image_size: int, normalization: Normalization | None, flip: bool) -> v2.Transform:
    """A random view of one image: PIL (RGB) to (3, image_size, image_size) float32.

    normalization: mean and deviation of each channel; None leaves the values in [0, 1]. flip: whether the view's
    flip happens at all.
    """
    steps: list[nn.Module] = [] if "crop" in view.order else _centre(image_size)
    on_floats = False
    for operation in view.order:
        if operation in ON_FLOATS and not on_floats:
            steps += _to_floats()
            on_floats = True
        if operation != "flip" or flip:
            steps.append(_operation(operation, view, image_size))
    return v2.Compose(steps + ([] if on_floats else _to_floats()) + _normalize(normalization))


def plain_transform(image_size: int, normalization: Normalization | None) -> v2.Transform:
    """The middle of one image, PIL (RGB) to (3, image_size, image_size) float32: as ImageNet's models are tested."""
    return v2.Compose(_centre(image_size) + _to_floats() + _normalize(normalization))


def _operation(operation: Operation, view: View, size: int) -> nn.Module:
    if operation == "crop":
        return v2.RandomResizedCrop(size, view.crop_scale, view.crop_ratio, antialias=True)
    if operation == "flip":
        return v2.RandomHorizontalFlip(view.flip_p)
    if operation == "jitter":
        return v2.RandomApply([v2.ColorJitter(*view.jitter)], view.jitter_p)
    if operation == "gray":
        return v2.RandomGrayscale(view.gray_p)
    if operation == "blur":
        return v2.RandomApply([v2.GaussianBlur(batch_augmentation.blur_width(size), view.blur_sigma)], view.blur_p)
    if operation == "solarize":
        return v2.RandomSolarize(0.5, view.solarize_p)
    return _BatchOfOne(operation, view, size)  # torchvision's affine shifts in another order, its noise has one sigma


class _BatchOfOne(nn.Module):
    """An operation of batch_augmentation.py on a single image."""

    def __init__(self, operation: Operation, view: View, size: int):
        super().__init__()
        self.operation, self.view, self.size = operation, view, size

    def forward(self, image: Tensor) -> Tensor:
        return batch_augmentation.OPERATIONS[self.operation](image[None], self.view, self.size, None)[0]


def _centre(size: int) -> list[nn.Module]:
    return [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]


def _to_floats() -> list[nn.Module]:
    # To a plain tensor: torchvision's subclass costs time in every later operation, and does not stack to a tensor.
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]


def _normalize(normalization: Normalization | None) -> list[nn.Module]:
    options: list[Any] = [list(values) for values in normalization or ()]
    return [v2.Normalize(*options)] if options else []
