"""A training step of ResNet-50 (SimCLR, MoCo v2), and what loss, momentum update and queue take of it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import NegativeQueue, functional

from .losses import step_of
from .timing import DEVICE, DRY, measured
from .work import MissingLibraryError, Work

BATCH, SIDE, ENCODER = (4, 32, "resnet18") if DRY else (128, 224, "resnet50")


def _encoder() -> torch.nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise MissingLibraryError("torchvision is not installed, whose encoder is trained") from None
    return models.get_model(ENCODER, num_classes=128).to(DEVICE)


def step(method: str) -> dict:
    """The whole step is the one the others are compared with."""
    moco = method == "moco-v2"
    encoder, key_encoder = _encoder(), _encoder()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.01)
    queue = NegativeQueue(128 if DRY else 65536, 128, seed=0).to(DEVICE)
    images = torch.randn(2, BATCH, 3, SIDE, SIDE, device=DEVICE)
    embeddings = [torch.randn(BATCH, 128, device=DEVICE).bfloat16().requires_grad_() for _ in range(2)]

    def loss_of(a: Tensor, b: Tensor) -> Tensor:
        return functional.info_nce(a, b, queue, 0.2) if moco else functional.nt_xent(a, b, 0.1)

    def update() -> None:
        ssl_fast.ema_update_(key_encoder, encoder, 0.999)

    def whole() -> None:
        with torch.autocast(DEVICE, torch.bfloat16):
            query = encoder(images[0])
            if moco:
                with torch.no_grad():
                    update()
                    other = key_encoder(images[1])
            else:
                other = encoder(images[1])
        loss = loss_of(query, other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if moco:
            queue.enqueue_(other, normalize=True)

    runs = {"step": whole, "loss": step_of(loss_of, embeddings)}
    if moco:
        runs |= {"ema": update, "queue": lambda: queue.enqueue_(embeddings[0].detach(), normalize=True)}
    return measured(runs, ours="step")


def works() -> list[Work]:
    methods = ("moco-v2",) if DRY else ("simclr", "moco-v2")
    return [
        Work({"work": "step", "method": method, "batch": BATCH, "encoder": ENCODER}, partial(step, method))
        for method in methods
    ]
