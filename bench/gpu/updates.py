"""The momentum update and the enqueue in CUDA C++ and in Triton, and the update as a share of what a copy moves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import ssl_fast
from bench import peers
from ssl_fast import NegativeQueue
from ssl_fast.operators import backends

from .timing import DEVICE, DRY, Stopwatch, measured
from .work import Work

MOMENTUM = 0.999
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resnet50_sizes() -> list[int]:
    """Elements of each parameter: here, so that no library is needed for them."""
    sizes, before = [64 * 3 * 7 * 7, 64, 64], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            sizes += [before * width, width, width, width * width * 9, width, width, width * 4 * width]
            sizes += [4 * width, 4 * width]
            if block == 0:
                sizes += [before * 4 * width, 4 * width, 4 * width]
            before = 4 * width
    return [*sizes, 2048 * 1000, 1000]


def vit_b_16_sizes() -> list[int]:
    width, layers = 768, 12
    layer = [3 * width * width, 3 * width, width * width, width, *[width] * 4]
    layer += [4 * width * width, 4 * width, 4 * width * width, width]
    return [width, 197 * width, width * 3 * 16 * 16, width, *layer * layers, width, width, width * 1000, 1000]


SIZES: dict[str, Callable[[], list[int]]] = {
    "resnet50": resnet50_sizes,
    "vit_b_16": vit_b_16_sizes,
    "dry": lambda: [300, 7, 1, 64],
}


def by_backends(operator: str, run: Callable[[], object]) -> dict[str, Callable[[], object]]:
    """The backend that is chosen by itself, as ssl_fast, and each one that is there by its name."""

    def by(name: str) -> Callable[[], None]:
        def call() -> None:
            with ssl_fast.backend(name):
                run()

        return call

    names = [name for name in ("cuda", "triton") if not backends.why_not(operator, name, DEVICE)]
    return {"ssl_fast": run} | {name: by(name) for name in names}


def ema(model: str, of_target: str, of_source: str) -> dict:
    sizes = SIZES[model]()
    target, source = ([torch.randn(n, device=DEVICE).to(DTYPES[x]) for n in sizes] for x in (of_target, of_source))
    ours = by_backends("ema_update_", lambda: ssl_fast.ema_update_(target, source, MOMENTUM))
    # Others take one dtype.
    runs = (peers.ema_peers(target, source, MOMENTUM) if of_target == of_source else {}) | ours
    flat: list[Tensor] = [torch.cat(tensors) for tensors in (target, source)]
    runs["one flat tensor"] = lambda: ssl_fast.ema_update_(flat[:1], flat[1:], MOMENTUM)
    if of_target == "bfloat16":
        seed = torch.zeros((), dtype=torch.int64, device=DEVICE)
        runs["rounded at random"] = lambda: ssl_fast.ema_update_(target, source, MOMENTUM, seed=seed)
    row = measured(runs, captured=tuple(ours))
    moved = sum(sizes) * (2 * target[0].element_size() + source[0].element_size())
    time = row["milliseconds"].get("ssl_fast, graph")
    return row | ({"gigabytes a second": moved / time / 1e6} if time else {})


def enqueue(size: int, dim: int, count: int, normalize: bool) -> dict:
    queue, keys = NegativeQueue(size, dim, seed=0).to(DEVICE), torch.randn(count, dim, device=DEVICE)
    runs = by_backends("enqueue_", partial(queue.enqueue_, keys, normalize))

    def eager() -> None:
        with ssl_fast.backend("reference"):
            queue.enqueue_(keys, normalize)

    return measured(runs | {"eager": eager}, captured=tuple(runs))


def copy() -> dict:
    """What the momentum update is a share of."""
    source, target = torch.randn(2, 1 << (10 if DRY else 28), device=DEVICE).unbind()
    watch = Stopwatch()
    time = sorted(watch(lambda: target.copy_(source)) for _ in range(11))[5]
    return {"milliseconds": {"copy": time}, "gigabytes a second": 2 * source.nbytes / time / 1e6}


def works() -> list[Work]:
    models = ("dry",) if DRY else ("resnet50", "vit_b_16")
    found = [Work({"work": "copy"}, copy)]
    for model in models:
        for dtypes in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16")):
            about = {"work": "ema_update_", "model": model, "target": dtypes[0], "source": dtypes[1]}
            found.append(Work(about, partial(ema, model, *dtypes)))
    for size in (70,) if DRY else (4096, 65536):
        for normalize in (False, True):
            about = {"work": "enqueue_", "K": size, "normalize": normalize}
            found.append(Work(about, partial(enqueue, size, 16 if DRY else 128, 33 if DRY else 256, normalize)))
    return found
