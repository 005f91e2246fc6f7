"""Losses forward and backward beside eager PyTorch, torch.compile and the libraries that are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

import ssl_fast
from bench import peers
from ssl_fast import NegativeQueue, functional

from .timing import DEVICE, DRY, added_megabytes, measured, reason
from .work import Work

TEMPERATURE = 0.1
# Rows whose matrices a peer can store; of more, only ours runs.
LARGEST_STORED = 32768
LARGEST_CHECKED = 8192  # against float64
# dtype, what float32 products are made in, most that a loss may differ from float64: a wrong one is not timed.
KINDS = {
    "bfloat16": (torch.bfloat16, "ieee", 2e-2),
    "tf32": (torch.float32, "tf32", 5e-3),
    "float32": (torch.float32, "ieee", 1e-4),
}


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def step_of(loss: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """Forward and backward; the gradients are left in the inputs."""

    def step() -> None:
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    return step


def by_reference(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same loss in plain PyTorch."""

    def call(*inputs: Tensor) -> Tensor:
        with ssl_fast.backend("reference"):
            return loss(*inputs)

    return call


def checked(losses: dict, truth: Tensor | None, inputs: list[Tensor], bound: float) -> tuple[dict, dict, dict]:
    """(those whose value is the truth's, relative errors, why the others are left out)."""
    good, errors, failed = {}, {}, {}
    for name, loss in losses.items():
        try:
            with torch.no_grad():
                value = loss(*inputs).double()
        except Exception as error:
            failed[name] = reason(error)
            continue
        errors[name] = 0.0 if truth is None else abs(value.item() / truth.item() - 1)
        if errors[name] <= bound:  # false for NaN
            good[name] = loss
        else:
            failed[name] = f"gives {value.item()}, float64 {truth.item()}"
    return good, {} if truth is None else errors, failed


def row_of(losses: dict, inputs: list[Tensor], truth: Callable[[], Tensor] | None, bound: float, flops: float) -> dict:
    """Times of each loss that is right, memory of each, ours as a rate."""
    with torch.no_grad():
        exact = None if truth is None else truth()
    good, errors, failed = checked(losses, exact, inputs, bound)
    steps = {name: step_of(loss, inputs) for name, loss in good.items()}
    row = measured(steps, captured=tuple(name for name in ("ssl_fast", "eager") if name in steps))
    row["failed"] = failed | row.get("failed", {})
    if not DRY:
        row["megabytes"] = {name: added_megabytes(run) for name, run in steps.items() if name not in row["failed"]}
    row["error"] = errors
    ours = row["milliseconds"].get("ssl_fast, graph", row["milliseconds"].get("ssl_fast"))
    return row | ({"teraflops": flops / ours / 1e9} if ours and flops else {})


def _rows(count: int, dim: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    return torch.randn(count, dim, device=DEVICE).to(dtype).requires_grad_(grad)


def nt_xent(count: int, dim: int, kind: str, compiled: bool) -> dict:
    """count: rows of both views together."""
    dtype, precision, bound = KINDS[kind]
    with products_in(precision), ssl_fast.backend("triton"):
        views = [_rows(count // 2, dim, dtype) for _ in range(2)]
        losses = {"ssl_fast": lambda a, b: functional.nt_xent(a, b, TEMPERATURE)}
        if count <= LARGEST_STORED:
            losses |= peers.nt_xent_peers(count, TEMPERATURE, compiled and not DRY)
        truth = partial(peers.eager_nt_xent, *(x.detach().double() for x in views), TEMPERATURE)
        return row_of(losses, views, truth if count <= LARGEST_CHECKED else None, bound, 4.0 * count**2 * dim)


def info_nce(count: int, size: int, dim: int, kind: str, compiled: bool) -> dict:
    """Queries against a queue of the same dtype."""
    dtype, precision, bound = KINDS[kind]
    with products_in(precision), ssl_fast.backend("triton"):
        query, key = _rows(count, dim, dtype), _rows(count, dim, dtype, grad=False)
        queue = NegativeQueue(size, dim, dtype=dtype, seed=0).to(DEVICE)
        losses = {"ssl_fast": lambda q, k: functional.info_nce(q, k, queue, TEMPERATURE)}
        losses |= peers.info_nce_peers(queue.queue, TEMPERATURE, compiled and not DRY)
        exact = [x.detach().double() for x in (query, key, queue.queue)]
        truth = partial(peers.eager_info_nce, *exact, TEMPERATURE)
        return row_of(losses, [query, key], truth, bound, 4.0 * count * size * dim)


def composed(name: str, count: int, dim: int, kind: str) -> dict:
    """A loss made of the similarity operators, beside the same in plain PyTorch."""
    dtype, precision, bound = KINDS[kind]
    with products_in(precision), ssl_fast.backend("triton"):
        labels = torch.arange(count, device=DEVICE) % max(2, count // 8)
        options = {"labels": labels} if name == "supcon" else {}
        inputs = [_rows(count, dim, dtype) for _ in range(1 if name == "supcon" else 2)]

        def loss(*rows: Tensor) -> Tensor:
            return getattr(functional, name)(*rows, **options)

        wide = [x.detach().double() for x in inputs]
        return row_of(
            {"ssl_fast": loss, "eager": by_reference(loss)}, inputs, partial(by_reference(loss), *wide), bound, 0
        )


def works() -> tuple[list[Work], list[Work]]:
    """(what matters most, the rest)."""
    if DRY:
        first = [_nt_xent(32, 16, "float32"), _info_nce(16, 64, 16, "float32"), _composed("clip", 16, 16, "float32")]
        return first, [_nt_xent(32, 16, "bfloat16")]
    first = [_nt_xent(4096, 128, kind, True) for kind in KINDS]
    first += [_info_nce(256, 65536, 128, kind, True) for kind in KINDS]
    first += [_nt_xent(512, 128, "bfloat16", True), _nt_xent(65536, 128, "bfloat16")]
    rest = [_composed(name, 4096, 512, kind) for name in ("clip", "siglip", "supcon") for kind in ("bfloat16", "tf32")]
    for count in (1024, 8192, 32768, 131072):
        rest += [_nt_xent(count, 128, kind) for kind in KINDS]
    for dim in (64, 256, 512):
        rest += [_nt_xent(4096, dim, kind) for kind in KINDS]
    rest += [_info_nce(1024, size, 128, kind) for size in (4096, 65536) for kind in KINDS]
    rest += [_info_nce(256, 65536, 256, kind) for kind in KINDS]
    return first, rest


def _nt_xent(count: int, dim: int, kind: str, compiled: bool = False) -> Work:
    about = {"work": "nt_xent", "N": count, "D": dim, "kind": kind}
    return Work(about, partial(nt_xent, count, dim, kind, compiled))


def _info_nce(count: int, size: int, dim: int, kind: str, compiled: bool = False) -> Work:
    about = {"work": "info_nce", "N": count, "K": size, "D": dim, "kind": kind}
    return Work(about, partial(info_nce, count, size, dim, kind, compiled))


def _composed(name: str, count: int, dim: int, kind: str) -> Work:
    return Work({"work": name, "N": count, "D": dim, "kind": kind}, partial(composed, name, count, dim, kind))
