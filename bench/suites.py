"""What is measured: for each suite rows of work, each with the runs to compare."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import functional, reference

from . import peers
from .work import TEMPERATURE, Work, steps, verified

# The reference stores the matrix: above this its float64 no longer fits, and ours, which the tests
# hold to it, stands in.
LARGEST_REFERENCE = 16384


def _forwards(losses: dict[str, Callable], inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    @torch.no_grad()
    def forward(loss):
        loss(*inputs)

    return {name: lambda loss=loss: forward(loss) for name, loss in losses.items()}


def _variants(
    suite: str, name: str, size: int, losses: dict, inputs: tuple, flops: float, about: dict, memory: dict | None = None
) -> Iterator[Work]:
    """Forward and backward, and at D=128 also forward alone and on one thread."""
    timed = steps(losses, inputs)
    yield Work(suite, name, size, timed, flops, memory=memory, about=about)
    if about["D"] == 128 and len(losses) > 1:
        yield Work(f"{suite} forward", name, size, _forwards(losses, inputs), about=about)
        # What torch.compile has compiled keeps the thread count that it was compiled for.
        alone = {name: run for name, run in timed.items() if name != "compile"}
        yield Work(f"{suite} 1 thread", name, size, alone, about=about, threads=1)


def nt_xent(quick: bool) -> Iterator[Work]:
    cases = [(rows, 128) for rows in ((64, 256, 1024, 2048) if quick else (64, 256, 512, 1024, 2048, 4096, 8192))]
    if not quick:
        cases += [(rows, dim) for rows in (64, 250, 2002) for dim in (64, 256, 512, 2048)]
        cases.append((65536, 128))
    for rows, dim in cases:
        z1, z2 = (torch.randn(rows // 2, dim, requires_grad=True) for _ in range(2))
        losses = {"ssl_fast": lambda a, b: functional.nt_xent(a, b, TEMPERATURE)}
        if rows <= LARGEST_REFERENCE:
            losses |= peers.nt_xent_peers(rows, TEMPERATURE)
        with torch.no_grad(), ssl_fast.backend("reference" if rows <= LARGEST_REFERENCE else "auto"):
            truth = functional.nt_xent(z1.double(), z2.double(), TEMPERATURE)
        with torch.no_grad():
            verified(losses, truth, (z1, z2))
        flops = 4.0 * rows * rows * dim  # forward N²D, backward 3 N²D: similarities again, two products
        memory = {"operator": "nt_xent", "rows": rows // 2, "dim": dim}
        about = {"N": rows, "D": dim}
        yield from _variants("nt_xent", f"N={rows} D={dim}", rows, losses, (z1, z2), flops, about, memory)


def info_nce(quick: bool) -> Iterator[Work]:
    if quick:
        cases = [(32, 4096, 128), (256, 16384, 128)]
    else:
        cases = [(n, k, dim) for dim in (128, 64, 256, 512) for n in (32, 256, 1024) for k in (4096, 16384, 65536)]
    for rows, size, dim in cases:
        query, positive = torch.randn(rows, dim, requires_grad=True), torch.randn(rows, dim)
        queue = ssl_fast.NegativeQueue(size, dim, seed=0)
        losses = {"ssl_fast": lambda q, k, queue=queue: functional.info_nce(q, k, queue, TEMPERATURE)}
        losses |= peers.info_nce_peers(queue.queue.clone(), TEMPERATURE)
        if dim != 128:
            losses = {name: losses[name] for name in ("ssl_fast", "eager")}
        with torch.no_grad():
            truth = reference.info_nce(query.double(), positive.double(), queue.queue.double(), TEMPERATURE)
            verified(losses, truth, (query, positive))
        about = {"N": rows, "K": size, "D": dim}
        memory = {"operator": "info_nce", "rows": rows, "dim": dim, "queue_size": size} if dim == 128 else None
        name, flops = f"N={rows} K={size} D={dim}", 4.0 * rows * size * dim
        yield from _variants("info_nce", name, size, losses, (query, positive), flops, about, memory)


def losses(quick: bool) -> Iterator[Work]:
    yield from nt_xent(quick)
    yield from info_nce(quick)


def ema(quick: bool) -> Iterator[Work]:
    models = {"ResNet-18": "resnet18"} if quick else {"ResNet-50": "resnet50", "ViT-B/16": "vit_b_16"}
    import torchvision.models

    for name, builder in models.items():
        target, source = ([p.detach() for p in torchvision.models.get_model(builder).parameters()] for _ in range(2))
        count = sum(p.numel() for p in target)
        runs = peers.ema_peers(target, source, 0.999)
        encoder, other = (torchvision.models.get_model(builder) for _ in range(2))
        runs["ssl_fast, modules"] = partial(ssl_fast.ema_update_, other, encoder, 0.999, "keep")
        key_encoder = ssl_fast.FlatMomentum(torchvision.models.get_model(builder), buffers="keep")
        runs["ssl_fast, FlatMomentum"] = partial(key_encoder.update_, 0.999)
        yield Work("ema", name, count, runs, bytes=12.0 * count, about={"parameters": count})
        yield Work("ema 1 thread", name, count, runs, about={"parameters": count}, threads=1)


def queue(quick: bool) -> Iterator[Work]:
    for size in (4096,) if quick else (4096, 65536):
        ours = ssl_fast.NegativeQueue(size, 128, seed=0)
        keys = torch.nn.functional.normalize(torch.randn(256, 128))
        plain, pointer = ours.queue.clone(), itertools.cycle(range(0, size, len(keys)))

        def moco(plain=plain, pointer=pointer, keys=keys):  # what moco does: a slice, where the batch divides the queue
            first = next(pointer)
            plain[first : first + len(keys)] = keys

        runs = {"ssl_fast": lambda ours=ours, keys=keys: ours.enqueue_(keys), "slice": moco}
        yield Work("queue", f"enqueue 256 x 128, K={size}", size, runs, bytes=2.0 * keys.nbytes, about={"K": size})


def step(quick: bool) -> Iterator[Work]:
    """A whole training step on digits, and what its parts take: their ratios are shares of the step."""
    from ssl_fast.train import data, models, recipes

    dataset = data.load("digits")
    generator, index = torch.Generator().manual_seed(0), torch.arange(256)
    images = dataset.train_images[:256]
    for name in ("simclr-small", "moco-v2-small"):
        recipe = recipes.RECIPES[name]
        augments = [data.Augment(dataset, view, recipe.normalize_images) for view in recipe.views]
        method = models.build(recipe, dataset.channels, dataset.image_size, dataset.train_count)
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
        embeddings = torch.randn(2, 256, recipe.projection_dim, requires_grad=True)

        def augmented(augments=augments):
            return [augment(images, generator) for augment in augments]

        def whole(method=method, optimizer=optimizer, augmented=augmented):
            method.start_step(0, 1)
            loss = method.loss(augmented(), index).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        def loss(method=method, recipe=recipe, embeddings=embeddings):
            pair = embeddings.unbind()
            if isinstance(method, models.MoCo):
                value = functional.info_nce(*pair, method.queue, recipe.temperature, return_stats=True)[0]
            else:
                value = functional.nt_xent(*pair, recipe.temperature, return_stats=True)[0]
            value.backward()

        runs = {"ssl_fast": whole, "augmentation": augmented, "loss": loss}
        if name == "moco-v2-small":
            runs["ema"] = lambda method=method: ssl_fast.ema_update_(method.key_encoder, method.encoder, 0.99)
            keys = embeddings[0].detach()
            runs["queue"] = lambda method=method, keys=keys: method.queue.enqueue_(keys)
        yield Work("step", f"{name}, batch 256 of digits", 256, runs, about={"batch": 256})


def composed(quick: bool) -> Iterator[Work]:
    from .composed import composed  # which imports this module

    yield from composed(quick)


SUITES = {"losses": losses, "composed": composed, "ema": ema, "queue": queue, "step": step}
