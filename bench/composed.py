"""The losses made of the primitive, each beside the code that people use for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import ssl_fast
from ssl_fast import functional

from .measure import TWO_ROWS
from .peers import (
    HAS_LINEAR_CROSS_ENTROPY,
    eager_info_nce,
    eager_nt_xent,
    installed,
    linear_cross_entropy,
    one_direction,
)
from .work import TEMPERATURE, Work, in_float64, steps, verified

DIM = 128
BANK = 16384  # images of the bank, rows of the queue
CLASSES = 100

# Makes the tensors of a loss, and the losses of them by name.
Make = Callable[[int, int], tuple[list[Tensor], dict[str, Callable]]]


@dataclass
class Loss:
    """make(rows, dim) -> (tensors, {name: loss of them}); ours is "ssl_fast". inputs: for measure.loss_memory."""

    function: str
    make: Make
    inputs: str = TWO_ROWS
    views: int = 1  # rows of a matrix side for each row of the inputs

    def memory(self, rows: int) -> dict[str, object]:
        count = rows // self.views
        others = rows if "queue_size" in self.inputs else 0
        return {"operator": self.function, "rows": count, "dim": DIM, "queue_size": others, "inputs": self.inputs}


def x(*sizes: int) -> Tensor:
    return torch.randn(*sizes, requires_grad=True)


def _masked_logits(u: Tensor, out: Tensor) -> Tensor:
    return (u @ u.T / TEMPERATURE).masked_fill(out, float("-inf"))


def _two_views(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits of the negatives, of the positives, unit rows)."""
    u = F.normalize(torch.cat([z1, z2]))
    image = torch.arange(len(z1)).repeat(2)
    logits = _masked_logits(u, image[:, None] == image)
    return logits, (u[: len(z1)] * u[len(z1) :]).sum(1).repeat(2) / TEMPERATURE, u


def eager_supcon(x: Tensor, labels: Tensor) -> Tensor:
    """With the mask matrix, the row maximum taken off, as SupContrast writes it; unscaled."""
    u = F.normalize(x)
    itself = torch.eye(len(u), dtype=torch.bool)
    positive = ((labels[:, None] == labels) & ~itself).float()
    logits = u @ u.T / TEMPERATURE
    logits = logits - logits.detach().amax(1, keepdim=True)
    log_probability = logits - (logits.exp() * ~itself).sum(1, keepdim=True).log()
    return -((positive * log_probability).sum(1) / positive.sum(1).clamp_min(1)).mean()


def _supcon(rows: int, dim: int):
    labels = torch.arange(rows) % max(2, min(CLASSES, rows // 4))
    losses = {
        "ssl_fast": lambda x: functional.supcon(x, labels, TEMPERATURE),
        "eager": lambda x: eager_supcon(x, labels),
    }
    if pml := installed("pytorch_metric_learning.losses"):
        library = pml.SupConLoss(temperature=TEMPERATURE)
        losses["pytorch-metric-learning"] = lambda x: library(x, labels)
    return [x(rows, dim)], losses


def _dcl(rows: int, dim: int):
    def eager(z1, z2):
        logits, positive, _ = _two_views(z1, z2)
        return (logits.logsumexp(1) - positive).mean()

    losses = {"ssl_fast": lambda z1, z2: functional.dcl(z1, z2, TEMPERATURE), "eager": eager}
    if lightly := installed("lightly.loss"):
        losses["lightly"] = lightly.DCLLoss(temperature=TEMPERATURE)
    return [x(rows // 2, dim), x(rows // 2, dim)], losses


def _hard_negatives(rows: int, dim: int):
    def eager(z1, z2):
        logits, positive, _ = _two_views(z1, z2)
        negative = logits.exp()
        negative = negative[negative > 0].view(len(logits), -1)
        tilt = negative.log().exp()  # beta = 1
        total = (tilt * negative).sum(1) / tilt.mean(1)
        return -(positive.exp() / (positive.exp() + total)).log().mean()

    ours = {"ssl_fast": lambda z1, z2: functional.hard_negative_nt_xent(z1, z2, TEMPERATURE), "eager": eager}
    return [x(rows // 2, dim), x(rows // 2, dim)], ours


def _clip(rows: int, dim: int):
    def eager(a, b):
        logits, label = F.normalize(a) @ F.normalize(b).T / TEMPERATURE, torch.arange(len(a))
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits.T, label)) / 2

    losses = {"ssl_fast": lambda a, b: functional.clip(a, b, TEMPERATURE), "eager": eager}
    if HAS_LINEAR_CROSS_ENTROPY:
        losses["linear_cross_entropy"] = lambda a, b: (
            (one_direction(a, b, TEMPERATURE) + one_direction(b, a, TEMPERATURE)) / 2
        )
    if open_clip := installed("open_clip.loss"):
        library = open_clip.ClipLoss()
        losses["open_clip"] = lambda a, b: library(F.normalize(a), F.normalize(b), 1 / TEMPERATURE)
    return [x(rows, dim), x(rows, dim)], losses


def _siglip(rows: int, dim: int):
    def eager(a, b):
        logits = F.normalize(a) @ F.normalize(b).T / TEMPERATURE - 10
        return -F.logsigmoid((2 * torch.eye(len(a)) - 1) * logits).sum() / len(a)

    losses = {"ssl_fast": lambda a, b: functional.siglip(a, b, TEMPERATURE), "eager": eager}
    if open_clip := installed("open_clip.loss"):
        library = open_clip.SigLipLoss(rank=0, world_size=1)
        losses["open_clip"] = lambda a, b: library(F.normalize(a), F.normalize(b), 1 / TEMPERATURE, -10.0)
    return [x(rows, dim), x(rows, dim)], losses


def _moco_v3(rows: int, dim: int):
    def eager(query, key):
        logits = F.normalize(query) @ F.normalize(key).T / TEMPERATURE
        return F.cross_entropy(logits, torch.arange(len(query)))

    def symmetric(contrast):
        return lambda q1, q2, k1, k2: 2 * TEMPERATURE * (contrast(q1, k2) + contrast(q2, k1))

    losses = {
        "ssl_fast": lambda q1, q2, k1, k2: functional.moco_v3(q1, q2, k1, k2, TEMPERATURE),
        "eager": symmetric(eager),
    }
    if HAS_LINEAR_CROSS_ENTROPY:
        losses["linear_cross_entropy"] = symmetric(lambda query, key: one_direction(query, key, TEMPERATURE))
    return [x(rows, dim), x(rows, dim), *torch.randn(2, rows, dim)], losses


def _several_positives(rows: int, dim: int):
    def eager(query, positives):
        q, k = F.normalize(query), F.normalize(positives, dim=-1)
        logits = q @ k.flatten(0, 1).T / TEMPERATURE
        own = (torch.arange(len(q))[:, None] == torch.arange(len(q)).repeat_interleave(k.shape[1])).float()
        return (logits.logsumexp(1) - (logits * own).sum(1) / k.shape[1]).mean()

    ours = {"ssl_fast": lambda q, k: functional.multi_positive_info_nce(q, k, None, TEMPERATURE), "eager": eager}
    return [x(rows, dim), x(rows, 2, dim)], ours


def _excluded(rows: int, dim: int):
    queue = ssl_fast.NegativeQueue(BANK, dim, seed=0)
    ids, others = torch.arange(rows), torch.arange(BANK) % 5000

    def eager(query, positive, bank):
        q, k = F.normalize(query), F.normalize(positive)
        logits = (q @ bank.T / TEMPERATURE).masked_fill(ids[:, None] == others, float("-inf"))
        logits = torch.cat([(q * k).sum(1, keepdim=True) / TEMPERATURE, logits], 1)
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    def ours(query, positive, bank):
        return functional.info_nce(query, positive, queue, TEMPERATURE, exclude=(ids, others))

    return [x(rows, dim), x(rows, dim), queue.queue], {"ssl_fast": ours, "eager": eager}


def _instances(rows: int, dim: int):
    index = torch.arange(rows) * 3 % BANK
    losses = {
        "ssl_fast": lambda x, bank: functional.instance_discrimination(x, index, bank, TEMPERATURE),
        "eager": lambda x, bank: F.cross_entropy(F.normalize(x) @ bank.T / TEMPERATURE, index),
    }
    if HAS_LINEAR_CROSS_ENTROPY:
        losses["linear_cross_entropy"] = lambda x, bank: linear_cross_entropy(F.normalize(x) / TEMPERATURE, bank, index)
    return [x(rows, dim), F.normalize(torch.randn(BANK, dim))], losses


LOSSES = {
    "SupCon": Loss("supcon", _supcon, "[x(rows), torch.arange(rows) % 100]"),
    "DCL": Loss("dcl", _dcl, views=2),
    "hard negatives": Loss("hard_negative_nt_xent", _hard_negatives, views=2),
    "CLIP": Loss("clip", _clip),
    "SigLIP": Loss("siglip", _siglip),
    "MoCo v3": Loss("moco_v3", _moco_v3, "[x(rows), x(rows), *(torch.randn(2, rows, 128).unbind())]"),
    "2 positives": Loss("multi_positive_info_nce", _several_positives, "[x(rows), x(rows, 2)]"),
    "InfoNCE by ids": Loss(
        "info_nce",
        _excluded,
        "dict(query=x(rows), positive=x(rows), negatives=x(queue_size).detach(),"
        " exclude=(torch.arange(rows), torch.arange(queue_size)))",
    ),
    "instances": Loss("instance_discrimination", _instances, "[x(rows), torch.arange(rows), x(queue_size).detach()]"),
}
AGAINST_ALL = ("InfoNCE by ids", "instances")  # as many rows as a batch has, against the queue or bank


def composed(quick: bool) -> Iterator[Work]:
    """Each loss at several sizes; its eager form gives the value that ours must have."""
    for name, loss in LOSSES.items():
        sizes = (64, 256) if name in AGAINST_ALL else (64, 256, 1024) if quick else (64, 256, 1024, 4096, 8192)
        for rows in sizes:
            inputs, losses = loss.make(rows, DIM)
            with torch.no_grad():
                verified(losses, in_float64(losses["eager"], inputs), tuple(inputs))
            memory = loss.memory(rows) if name not in AGAINST_ALL else None
            about = {"N": rows, "D": DIM}
            yield Work("composed", f"{name} N={rows}", rows, steps(losses, tuple(inputs)), memory=memory, about=about)
    yield from _own_kernels(quick)


def _own_kernels(quick: bool) -> Iterator[Work]:
    """NT-Xent and InfoNCE by their own kernels, and composed of the primitive: what the former are kept for."""
    for rows in (64, 1024) if quick else (64, 256, 1024, 4096):
        z1, z2 = x(rows // 2, DIM), x(rows // 2, DIM)
        image = torch.arange(rows // 2).repeat(2)

        def nt_xent(z1, z2, image=image):
            z, positive = torch.cat([z1, z2]), F.cosine_similarity(z1, z2).repeat(2) / TEMPERATURE
            lse = functional.similarity_lse(z, z, 1 / TEMPERATURE, exclude=(image, image))
            return F.softplus(lse - positive).mean()

        losses = {"ssl_fast": lambda a, b: functional.nt_xent(a, b, TEMPERATURE), "primitive": nt_xent}
        truth = eager_nt_xent(z1.detach(), z2.detach(), TEMPERATURE)
        verified(losses, truth, (z1, z2))
        yield Work("own kernels", f"nt_xent N={rows}", rows, steps(losses, (z1, z2)), about={"N": rows, "D": DIM})
    queue = ssl_fast.NegativeQueue(BANK, DIM, seed=0)
    query, key = x(256, DIM), torch.randn(256, DIM)

    def info_nce(query, key):
        positive = F.cosine_similarity(query, key) / TEMPERATURE
        q = F.normalize(query)
        lse = functional.similarity_lse(q, queue.queue, 1 / TEMPERATURE, normalize=False)
        return F.softplus(lse - positive).mean()

    losses = {"ssl_fast": lambda q, k: functional.info_nce(q, k, queue, TEMPERATURE), "primitive": info_nce}
    verified(losses, eager_info_nce(query.detach(), key, queue.queue, TEMPERATURE), (query, key))
    about = {"N": 256, "K": BANK, "D": DIM}
    yield Work("own kernels", f"info_nce N=256 K={BANK}", BANK, steps(losses, (query, key)), about=about)
