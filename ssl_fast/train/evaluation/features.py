"""Features of a frozen encoder, which all measures are taken of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...formulas.rows import upcast


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Inside, the encoder is in eval mode and gradients are off.

    At the end, also after an error, every module gets its own mode back.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def encode(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Encodes images in eval mode, batch by batch; afterwards every module has the mode that it had.

    Args:
        encoder: (n, C, S, S) to (n, D).
        images: (N, C, S, S) float32, on the encoder's device.
        batch_size: Images a batch.

    Returns:
        (N, D), the features.
    """
    with evaluating(encoder):
        return torch.cat([encoder(batch) for batch in images.split(batch_size)])


def encode_batches(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], only_labelled: bool = True
) -> tuple[Tensor, Tensor]:
    """Encodes batches of images with their labels in eval mode; afterwards every module has the mode that it had.

    Args:
        encoder: (n, C, S, S) to (n, D).
        batches: Pairs of images (n, C, S, S) float32, on the encoder's device, and labels (n,) int64.
        only_labelled: Whether images with the label -1 are left out.

    Returns:
        The features (N, D), float32 or float64 (float16 and bfloat16 are converted), and the labels (N,) int64, both on
        the encoder's device.

    Raises:
        ValueError: where no image is left.
    """
    rows: list[Tensor] = []
    all_labels: list[Tensor] = []
    with evaluating(encoder):
        for images, labels in batches:
            if only_labelled:
                kept = labels >= 0
                images, labels = images[kept.to(images.device)], labels[kept]
            if len(labels):
                rows.append(upcast(encoder(images)))
                all_labels.append(labels.to(rows[-1].device))
    if not rows:
        raise ValueError(f"batches: expected {'labelled ' if only_labelled else ''}images, got none")
    return torch.cat(rows), torch.cat(all_labels)
