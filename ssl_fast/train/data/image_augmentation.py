"""Random views of single images by torchvision, made by the workers that read the files of a FolderDataset.

The operations and their distributions are those of batch_augmentation.py, which a test compares. They draw from
PyTorch's global generator, which batches.py seeds for each image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from ..recipes.view import Operation, View
from . import batch_augmentation

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
# These operations work on float tensors. Those before the first of them work on PIL images, which is faster.
ON_FLOATS = ("affine", "blur", "solarize", "noise")


def transform(view: View, image_size: int, normalization: Normalization | None, flip: bool) -> v2.Transform:
    """Returns the transform that draws a random view of one image.

    Args:
        view: The operations and their numbers.
        image_size: Side of the result in pixels.
        normalization: Mean and standard deviation of each channel; None leaves the values in [0, 1].
        flip: Whether the data set may be flipped; without it the view's "flip" is left out.

    Returns:
        A transform of a PIL image (RGB) to a (3, image_size, image_size) float32 tensor.
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
    """Returns the transform that cuts out the middle of a PIL image (RGB), (3, image_size, image_size) float32.

    The image's shorter side becomes image_size * 256 / 224 first, as for testing models on ImageNet.
    """
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
    # torchvision's affine shifts after it rotates, and its noise has a fixed deviation.
    return _BatchOfOne(operation, view, size)


class _BatchOfOne(nn.Module):
    """Applies an operation of batch_augmentation.py to a single image (C, H, W)."""

    def __init__(self, operation: Operation, view: View, size: int):
        super().__init__()
        self.operation, self.view, self.size = operation, view, size

    def forward(self, image: Tensor) -> Tensor:
        return batch_augmentation.OPERATIONS[self.operation](image[None], self.view, self.size, None)[0]


def _centre(size: int) -> list[nn.Module]:
    return [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]


def _to_floats() -> list[nn.Module]:
    # ToPureTensor: torchvision's subclass of Tensor slows every later operation, and its stack is no plain tensor.
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]


def _normalize(normalization: Normalization | None) -> list[nn.Module]:
    options: list[Any] = [list(values) for values in normalization or ()]
    return [v2.Normalize(*options)] if options else []
