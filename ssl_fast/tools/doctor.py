"""`ssl-fast doctor`: versions, what was built, which backend each operator uses, and a check of each of them."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys

import torch
from torch import Tensor

from .. import functional
from ..memory.momentum import ema_update_
from ..memory.queue import NegativeQueue
from ..operators import backends, loading
from ..version import __version__

# float32 against the float64 reference: the loss relative to itself, the rest to the largest entry.
BOUNDS = {"loss": 2e-6, "gradient": 5e-6, "values": 1e-6}


def _random(device: str, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Leaf tensors of the same float32 values for every device and dtype."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def _loss_and_gradient(loss: Tensor, inputs: list[Tensor]) -> dict[str, list[Tensor]]:
    return {"loss": [loss.detach()], "gradient": list(torch.autograd.grad(loss, inputs))}


def _nt_xent(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    z1, z2 = _random(device, dtype, (150, 70), (150, 70))
    return _loss_and_gradient(functional.nt_xent(z1, z2), [z1, z2])


def _info_nce(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    query, positive, shared, own = _random(device, dtype, (90, 70), (90, 70), (333, 70), (90, 5, 70))
    queue = NegativeQueue(333, 70, dtype, seed=0).to(device)
    results: dict[str, list[Tensor]] = {"loss": [], "gradient": []}
    for negatives in (None, shared, own, queue):
        inputs = [query, positive, *([negatives] if isinstance(negatives, Tensor) else [])]
        for kind, tensors in _loss_and_gradient(functional.info_nce(query, positive, negatives), inputs).items():
            results[kind] += tensors
    return results


def _similarity_lse(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    a, b = _random(device, dtype, (90, 70), (250, 70))
    ids = torch.arange(90, device=device) % 40, torch.arange(250, device=device) % 40
    results: dict[str, list[Tensor]] = {"loss": [], "gradient": []}
    for other, exclude in ((a, "self"), (b, None), (b, ids)):
        # One way where ids leave pairs out, else both ways from one pass.
        lse = functional.similarity_lse(a, other, 10.0, exclude=exclude, columns=exclude is None)
        loss = lse.mean() if isinstance(lse, Tensor) else lse[0].mean() + lse[1].mean()
        for kind, tensors in _loss_and_gradient(loss, [a] if other is a else [a, b]).items():
            results[kind] += tensors
    return results


def _two_by_two(device: str, dtype: torch.dtype) -> list[Tensor]:
    return _random(device, dtype, (150, 70), (150, 70))


def _pair_similarity(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    a, b = _two_by_two(device, dtype)
    return _loss_and_gradient(functional.clip(a, b), [a, b])


def _class_similarity(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    features, _ = _two_by_two(device, dtype)
    return _loss_and_gradient(functional.supcon(features, torch.arange(150, device=device) % 7), [features])


def _similarity_softplus(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    a, b = _two_by_two(device, dtype)
    return _loss_and_gradient(functional.siglip(a, b), [a, b])


def _ema_update_(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    *target, source, other_source = (x.detach() for x in _random(device, dtype, (1000,), (7, 9), (1000,), (7, 9)))
    ema_update_(target, [source, other_source], 0.99)
    return {"values": target}


def _enqueue_(device: str, dtype: torch.dtype) -> dict[str, list[Tensor]]:
    queue = NegativeQueue(50, 70, dtype, seed=0).to(device)
    # Within the queue, past its end, and more than it holds.
    for keys in _random(device, dtype, (30, 70), (30, 70), (120, 70)):
        queue.enqueue_(keys.detach())
    return {"values": [queue.queue, queue.queue_ptr]}


CHECKS = {
    "nt_xent": _nt_xent,
    "info_nce": _info_nce,
    "similarity_lse": _similarity_lse,
    "pair_similarity": _pair_similarity,  # by a loss that uses it, as the next two
    "class_similarity": _class_similarity,
    "similarity_softplus": _similarity_softplus,
    "ema_update_": _ema_update_,
    "enqueue_": _enqueue_,
}


def error_of(got: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected entry; NaN where either has one."""
    expected = expected.double().cpu()
    return ((got.double().cpu() - expected).abs().max() / expected.abs().max()).item()


def check(operator: str, backend_name: str, device: str) -> tuple[bool, str]:
    """Whether float32 on this backend agrees with the float64 reference, and the errors as text."""
    with backends.backend("reference"):
        expected = CHECKS[operator]("cpu", torch.float64)
    try:
        with backends.backend(backend_name):
            got = CHECKS[operator](device, torch.float32)
    except Exception as error:  # the report goes on: a broken backend is what it looks for
        return False, f"{type(error).__name__}: {error}"
    passed, texts = True, []
    for kind, tensors in got.items():
        # A NaN must not lose against a number, as it may in max().
        errors = [error_of(*pair) for pair in zip(tensors, expected[kind], strict=True)]
        passed = passed and all(error <= BOUNDS[kind] for error in errors)
        texts.append(f"{kind} {max(errors, key=lambda error: (error != error, error)):.1e}")
    return passed, ", ".join(texts)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _print_build() -> None:
    print(f"ssl_fast   {__version__}")
    print(f"Python     {platform.python_version()}, {platform.platform()}")
    print(f"torch      {torch.__version__}")
    print(f"triton     {_version('triton')}")
    if loading.extension is None:
        print(f"extension  missing: {loading.why_missing}; `ssl-fast build` compiles it")
    else:
        print(f"extension  {loading.extension.__file__}")
        print("           built for torch {torch} by {compiler}".format(**loading.record))
        if loading.record["cuda"]:
            print("           CUDA kernels by nvcc {version} for {architectures}".format(**loading.record["cuda"]))
        for key, value in loading.extension.build_info().items():
            print(f"           {key}: {value}")
    print(f"threads    {torch.get_num_threads()} of {os.cpu_count()} CPUs")
    print(f"backend    SSL_FAST_BACKEND={os.environ.get('SSL_FAST_BACKEND', 'auto')}")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        print(f"GPU {index}      {gpu.name}, {gpu.major}.{gpu.minor}, {gpu.total_memory >> 30} GiB")
        if tiles := _tiles(index):
            print(f"           {tiles}")
    if not torch.cuda.is_available():
        print("GPU        none that torch can use")


def _tiles(index: int) -> str:
    """The architecture that Triton's kernels see in a GPU, and whose row of the tile table they take."""
    try:
        table = importlib.import_module("ssl_fast.kernels.tuning.table")
    except ImportError:  # without Triton there are no tiles
        return ""
    device = torch.device("cuda", index)
    name = table.architecture(device)
    row, reason = table.choice(name, table.shared_limit(device))
    return f"{name}, tiles of {row}" + (f": {reason}" if reason else "")


def _print_choices(devices: list[str]) -> None:
    print("\nWhich backend runs each operator:")
    for device in devices:
        for operator in backends.IMPLEMENTATIONS:
            try:
                chosen = backends.choose(operator, device)
            except ValueError as error:
                chosen = f"none ({error})"
            print(f"  {operator:19} on {device:5} {chosen}")
            for name in backends.BACKENDS:
                reason = backends.why_not(operator, name, device)
                if reason:
                    print(f"{'':31}not {name}: {reason}")


def _print_checks(devices: list[str]) -> bool:
    print(
        "\nSelf-check, float32 against the float64 reference (bounds: "
        + ", ".join(f"{kind} {bound:.0e}" for kind, bound in BOUNDS.items())
        + "):"
    )
    all_passed = True
    for device in devices:
        for operator in backends.IMPLEMENTATIONS:
            for name in backends.BACKENDS:
                if backends.why_not(operator, name, device):
                    continue
                passed, text = check(operator, name, device)
                all_passed = all_passed and passed
                print(f"  {'ok    ' if passed else 'FAILED'} {operator:19} on {device:5} {name:10} {text}")
    return all_passed


def main(arguments: list[str]) -> int:
    """Prints the report; returns 1 where a check failed."""
    argparse.ArgumentParser(prog="ssl-fast doctor", description=__doc__).parse_args(arguments)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        _print_build()
    except ValueError as error:  # an unknown SSL_FAST_SIMD, with which nothing compiled can run
        print(f"ssl-fast doctor: {error}", file=sys.stderr)
        return 1
    _print_choices(devices)
    return 0 if _print_checks(devices) else 1
