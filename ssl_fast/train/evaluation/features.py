"""Features of a frozen encoder, which every measure is taken of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...formulas.rows import upcast


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards, also after an error, every module has the mode that it had."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def encode(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """The encoder's features of float images, (N, C, S, S) to (N, D), in eval mode, batch by batch.

    Every module is left in the mode that it was in.
    """
    with evaluating(encoder):
        return torch.cat([encoder(batch) for batch in images.split(batch_size)])


def encode_batches(
    encoder: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], only_labelled: bool = True
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of batches of images (n, C, S, S) float and labels (n,) int64, in eval mode.

    only_labelled: images of the label -1 are left out, and not encoded. Every module is left in the mode that it was
    in. float16 and bfloat16 features come as float32.
    Raises ValueError where no image is left.
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
