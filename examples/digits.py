"""What the examples on digits share: random views, and how much the features know of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def view(images: Tensor, turn: float = 0.3, size: float = 0.1, light: float = 0.0) -> Tensor:
    """(N, 1, S, S) in [0, 1] -> each turned, scaled and moved at random, with noise; with `light` also lit by it.

    turn (radians), size: standard deviations.
    """
    angle, scale = turn * torch.randn(len(images)), 1 + size * torch.randn(len(images))
    cos, sin, (dx, dy) = angle.cos() * scale, angle.sin() * scale, 0.15 * torch.randn(2, len(images))
    matrix = torch.stack([cos, -sin, dx, sin, cos, dy], 1).view(-1, 2, 3)
    moved = F.grid_sample(images, F.affine_grid(matrix, list(images.shape), False), align_corners=False)
    if light:
        moved = moved * (1 - light + 2 * light * torch.rand(len(images), 1, 1, 1))
    return moved + 0.1 * torch.randn_like(images)


@torch.no_grad()
def accuracy(encoder: nn.Module, gallery: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Of the test images, each with the label of the most similar one in the gallery; pairs of images and labels."""
    encoder.eval()
    bank, queries = (F.normalize(encoder(images)) for images, _ in (gallery, test))
    encoder.train()
    return (gallery[1][(queries @ bank.T).argmax(1)] == test[1]).float().mean().item()
