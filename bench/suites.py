"""What is measured: for each suite rows of work, each with the runs to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import functional, reference

from . import peers

TEMPERATURE = 0.1


@dataclass
class Work:
    """One row: `runs` by name, ours is "ssl_fast"; flops and bytes that the work needs, where known."""

    suite: str
    name: str
    size: int
    runs: dict[str, Callable[[], object]]
    flops: float = 0.0
    bytes: float = 0.0
    memory: dict[str, object] | None = None  # arguments of measure.loss_memory
    about: dict[str, object] = field(default_factory=dict)


def _verified(losses: dict[str, Callable], truth: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    """The losses, after each has given the float64 reference's value: no wrong answer is timed."""
    for name, loss in losses.items():
        value = loss(*inputs).item()
        if not abs(value - truth.item()) <= 1e-4 * abs(truth.item()):
            raise AssertionError(f"{name} gives {value}, the float64 reference {truth.item()}")
    return losses


def _steps(losses: dict[str, Callable], inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    """Forward and backward of each loss."""

    def step(loss):
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    return {name: lambda loss=loss: step(loss) for name, loss in losses.items()}


def _forwards(losses: dict[str, Callable], inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    @torch.no_grad()
    def forward(loss):
        loss(*inputs)

    return {name: lambda loss=loss: forward(loss) for name, loss in losses.items()}


def nt_xent(quick: bool) -> Iterator[Work]:
    sizes = (64, 256, 1024, 2048) if quick else (64, 256, 512, 1024, 2048, 4096, 8192)
    cases = [(rows, 128) for rows in sizes]
    if not quick:
        cases += [(rows, dim) for rows in (256, 2000) for dim in (64, 256, 512, 2048)]
    for rows, dim in cases:
        z1, z2 = (torch.randn(rows // 2, dim, requires_grad=True) for _ in range(2))
        losses = {"ssl_fast": lambda a, b: functional.nt_xent(a, b, TEMPERATURE)}
        losses |= peers.nt_xent_peers(rows, TEMPERATURE)
        with torch.no_grad():
            truth = reference.nt_xent(z1.double(), z2.double(), TEMPERATURE)
            _verified(losses, truth, (z1, z2))
        about = {"N": rows, "D": dim}
        flops = 4.0 * rows * rows * dim  # forward N²D, backward 3 N²D: similarities again, two products
        memory = {"operator": "nt_xent", "rows": rows // 2, "dim": dim}
        yield Work("nt_xent", f"N={rows} D={dim}", rows, _steps(losses, (z1, z2)), flops, 0, memory, about)
        if dim == 128:
            runs = _forwards(losses, (z1, z2))
            yield Work("nt_xent forward", f"N={rows} D={dim}", rows, runs, flops / 4, about=about)


def info_nce(quick: bool) -> Iterator[Work]:
    if quick:
        cases = [(32, 4096, 128), (256, 16384, 128)]
    else:
        cases = [(n, k, 128) for n in (32, 256, 1024) for k in (4096, 16384, 65536)]
        cases += [(256, 16384, dim) for dim in (64, 256, 512)]
    for rows, size, dim in cases:
        query, positive = torch.randn(rows, dim, requires_grad=True), torch.randn(rows, dim)
        queue = ssl_fast.NegativeQueue(size, dim, seed=0)
        losses = {"ssl_fast": lambda q, k, queue=queue: functional.info_nce(q, k, queue, TEMPERATURE)}
        losses |= peers.info_nce_peers(queue.queue.clone(), TEMPERATURE)
        with torch.no_grad():
            negatives = queue.queue.double()
            truth = reference.info_nce(query.double(), positive.double(), negatives, TEMPERATURE)
            _verified(losses, truth, (query, positive))
        about = {"N": rows, "K": size, "D": dim}
        yield Work(
            "info_nce", f"N={rows} K={size} D={dim}", size, _steps(losses, (query, positive)),
            4.0 * rows * size * dim, about=about,
        )  # fmt: skip


def ema(quick: bool) -> Iterator[Work]:
    models = {"ResNet-18": "resnet18"} if quick else {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}
    import torchvision.models

    for name, builder in models.items():
        target, source = ([p.detach() for p in torchvision.models.get_model(builder).parameters()] for _ in range(2))
        count = sum(p.numel() for p in target)
        runs = peers.ema_peers(target, source, 0.999)
        yield Work("ema", name, count, runs, bytes=12.0 * count, about={"parameters": count})


def queue(quick: bool) -> Iterator[Work]:
    for size in (4096,) if quick else (4096, 65536):
        ours = ssl_fast.NegativeQueue(size, 128, seed=0)
        keys = torch.nn.functional.normalize(torch.randn(256, 128))
        plain = ours.queue.clone()

        def moco(plain=plain, keys=keys):  # what moco does: a slice, where the batch divides the queue
            plain[512 : 512 + len(keys)] = keys

        runs = {"ssl_fast": lambda ours=ours, keys=keys: ours.enqueue_(keys), "slice": moco}
        yield Work("queue", f"enqueue 256 x 128, K={size}", size, runs, bytes=2.0 * keys.nbytes, about={"K": size})


SUITES = {"nt_xent": nt_xent, "info_nce": info_nce, "ema": ema, "queue": queue}
