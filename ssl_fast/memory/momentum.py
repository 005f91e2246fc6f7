"""The momentum (EMA) update of a key encoder (MoCo, He et al. 2020, eq. 2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .. import checks, reference
from ..operators import backends

if TYPE_CHECKING:
    from ..annotations import Scalar

BUFFERS = ("copy", "ema", "keep")


@torch.no_grad()
def ema_update_(
    target: nn.Module | Iterable[Tensor],
    source: nn.Module | Iterable[Tensor],
    momentum: float | Tensor,
    buffers: str = "copy",
    seed: int | Tensor | None = None,
) -> None:
    """target = momentum * target + (1 - momentum) * source, in place; storage is never rebound.

    target, source: two modules with the same names and shapes, or two equally long sequences of
        tensors. Floats of any dtype pair (arithmetic in float32 or wider); integers are copied.
    momentum: a number from 0 to 1, or a 0-D float32 or float64 tensor; 1 leaves the target's parameters as
        they are. A tensor on the target's GPU is read there, so that a CUDA graph may change it; outside 0
        to 1 it makes the target NaN.
    buffers: of modules: "copy" (default), "ema" (floats averaged, integers copied) or "keep".
    seed: None rounds to the nearest. An int, or a 0-D int64 tensor on the target's device: bfloat16 targets
        are rounded at random, up or down, with the exact average as the mean. Without it a bfloat16 target
        hardly moves at momentum 0.999, whose steps are below its resolution. Give another seed each step.

    Raises ValueError or TypeError before any tensor is touched: another name, shape or device, a
    float against an integer, complex or 8-bit floats, an expanded target.
    """
    checks.choice("buffers", buffers, BUFFERS)
    if isinstance(target, nn.Module) != isinstance(source, nn.Module):
        raise TypeError(f"source: expected the kind of target, got {type(target).__name__} and {type(source).__name__}")
    if not isinstance(target, nn.Module):
        for name, side in (("target", target), ("source", source)):
            if not isinstance(side, Iterable) or (isinstance(side, Tensor) and not side.dim()):
                raise TypeError(f"{name}: expected a module or a sequence of Tensors, got {type(side).__name__}")
        _update(paired(*(dict(enumerate(side)) for side in (target, source))), momentum, seed)  # type: ignore[arg-type]
        return
    assert isinstance(source, nn.Module)  # as the target is
    averaged = paired(dict(target.named_parameters()), dict(source.named_parameters()))
    update_with_buffers(averaged, target, source, momentum, buffers, seed)


def update_with_buffers(
    averaged: list[tuple[Tensor, Tensor]],
    target: nn.Module,
    source: nn.Module,
    momentum: Scalar,
    buffers: str,
    seed: int | Tensor | None,
) -> None:
    """The update of these pairs of tensors, and of the modules' buffers."""
    buffer_pairs = []
    if buffers != "keep":
        buffer_pairs = paired(dict(target.named_buffers()), dict(source.named_buffers()))
    _update(averaged + buffer_pairs if buffers == "ema" else averaged, momentum, seed)
    if buffers == "copy" and buffer_pairs:
        # Not an update with momentum 0: 0 * Inf would be NaN.
        torch._foreach_copy_([t for t, _ in buffer_pairs], [s for _, s in buffer_pairs])


def cosine_momentum(step: float | Tensor, steps: float, start: float, end: float = 1.0) -> Any:
    """From `start` to `end` by half a cosine (BYOL, Grill et al. 2020, section 3.2; MoCo v3, Chen et al. 2021).

    end - (end - start) (cos(pi step / steps) + 1) / 2. step, steps: of the same unit, epochs or iterations.
    A 0-D tensor for step gives a float64 tensor where it lies, computed there: with a counter that a CUDA graph
    advances, the graph follows the schedule. MoCo v3: start 0.99; BYOL: 0.996.
    Raises ValueError for a number outside 0 to steps; a tensor outside gives NaN.
    """
    checks.momentum(start, "start")
    checks.momentum(end, "end")
    checks.number("steps", steps, math.ulp(0.0))
    if isinstance(step, Tensor):
        checks.dense("step", step)
        checks.scalar("step", step if step.dtype.is_complex else step.double())
        share = step.double() / steps
        share = torch.where((share >= 0) & (share <= 1), share, torch.nan)
        return end - (end - start) * (torch.cos(math.pi * share) + 1) / 2
    checks.number("step", step, 0)
    if step > steps:
        raise ValueError(f"step: expected a number from 0 to {steps}, got {step}")
    return end - (end - start) * (math.cos(math.pi * step / steps) + 1) / 2


def _plain(t: Any, s: Any) -> bool:
    """Whether a pair needs no further check: two tensors alike in all that matters."""
    return (
        isinstance(t, Tensor)
        and isinstance(s, Tensor)
        and t.dtype is s.dtype
        and t.dtype in checks.FLOATS
        and t.layout is s.layout is torch.strided
        and t.shape == s.shape
        and t.device == s.device
        and t.is_contiguous()
    )


def paired(target: Mapping[Any, Tensor], source: Mapping[Any, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the same name, after every check."""
    if target.keys() != source.keys():
        differing = sorted(map(str, target.keys() ^ source.keys()))
        raise ValueError(f"source: expected the tensors of target, got other names: {', '.join(differing[:5])}")
    for name, t in target.items():
        s = source[name]
        # Hundreds of tensors a step: the common case takes one line.
        try:
            if _plain(t, s):
                continue
        except RuntimeError:  # lazy or nested: there is no shape to ask for
            pass
        if not isinstance(t, Tensor) or not isinstance(s, Tensor):
            raise TypeError(f"source[{name}]: expected Tensors, got {type(t).__name__} and {type(s).__name__}")
        for side, x in (("target", t), ("source", s)):
            if isinstance(x, UninitializedTensorMixin):  # is_lazy() breaks torch.compile
                raise ValueError(f"{side}[{name}]: expected a tensor with a shape, got a lazy one")
            checks.dense(f"{side}[{name}]", x)
        if t.shape != s.shape:
            raise ValueError(f"source[{name}]: expected shape {tuple(t.shape)} as target, got {tuple(s.shape)}")
        if t.device != s.device:
            raise ValueError(f"source[{name}]: expected device {t.device} as target, got {s.device}")
        for side, dtype in (("target", t.dtype), ("source", s.dtype)):
            if dtype not in checks.FLOATS and (dtype.is_floating_point or dtype.is_complex):
                raise TypeError(
                    f"{side}[{name}]: expected float32, float64, bfloat16, float16 or integers, got {dtype}"
                )
        if t.dtype != s.dtype and not (t.dtype in checks.FLOATS and s.dtype in checks.FLOATS):
            raise TypeError(f"source[{name}]: expected {t.dtype} as target (or two floats), got {s.dtype}")
        if any(step == 0 and length > 1 for step, length in zip(t.stride(), t.shape, strict=True)):
            raise ValueError(f"target[{name}]: expected memory of its own for each element, got an expanded tensor")
    return [(t, source[name]) for name, t in target.items()]


def _update(pairs: list[tuple[Tensor, Tensor]], momentum: float | Tensor, seed: int | Tensor | None) -> None:
    momentum = checks.momentum_or_tensor(momentum)
    checks.seed(seed)
    for name, value in (("momentum", momentum), ("seed", seed)):
        if not isinstance(value, Tensor):
            continue
        elsewhere = next((t for t, _ in pairs if t.device != value.device), None)
        if elsewhere is not None:
            raise ValueError(f"{name}: expected device {elsewhere.device} as the target, got {value.device}")
    by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        by_device.setdefault(pair[0].device, []).append(pair)
    for device, here in by_device.items():
        target, source = map(list, zip(*here, strict=True))
        seed_here = torch.full((), seed, dtype=torch.int64, device=device) if isinstance(seed, int) else seed
        chosen = backends.choose("ema_update_", device.type)
        if chosen == "reference":
            reference.ema_update_(target, source, momentum, seed_here)
            continue
        update = torch.ops.ssl_fast.triton_ema_update_ if chosen == "triton" else torch.ops.ssl_fast.ema_update_
        on_device = momentum if isinstance(momentum, Tensor) else None
        update(target, source, 1.0 if on_device is not None else float(momentum), on_device, seed_here)
