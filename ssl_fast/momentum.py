"""The momentum (EMA) update of a key encoder (MoCo, He et al. 2020, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import backends, checks, reference

BUFFERS = ("copy", "ema", "keep")


@torch.no_grad()
def ema_update_(
    target: nn.Module | Sequence[Tensor],
    source: nn.Module | Sequence[Tensor],
    momentum: float,
    buffers: str = "copy",
) -> None:
    """target = momentum * target + (1 - momentum) * source, in place; storage is never rebound.

    target, source: two modules with the same names and shapes, or two equally long sequences of
        tensors. Floats of any dtype pair (arithmetic in float32 or wider); integers are copied.
    momentum: a number from 0 to 1; 1 leaves the target's parameters as they are.
    buffers: of modules: "copy" (default), "ema" (floats averaged, integers copied) or "keep".

    Raises ValueError or TypeError before any tensor is touched: another name, shape or device, a
    float against an integer, complex or 8-bit floats, an expanded target.
    """
    checks.momentum(momentum)
    if buffers not in BUFFERS:
        raise ValueError(f"buffers: expected one of {', '.join(BUFFERS)}, got {buffers!r}")
    if isinstance(target, nn.Module) != isinstance(source, nn.Module):
        raise TypeError(f"source: expected the kind of target, got {type(target).__name__} and {type(source).__name__}")
    if not isinstance(target, nn.Module):
        _update(_paired(dict(enumerate(target)), dict(enumerate(source))), momentum)
        return
    averaged = _paired(dict(target.named_parameters()), dict(source.named_parameters()))
    buffer_pairs = _paired(dict(target.named_buffers()), dict(source.named_buffers()))
    if buffers == "ema":
        averaged += buffer_pairs
    _update(averaged, momentum)
    if buffers == "copy" and buffer_pairs:
        # Not an update with momentum 0: 0 * Inf would be NaN.
        torch._foreach_copy_(*map(list, zip(*buffer_pairs, strict=True)))


def _plain(t, s) -> bool:
    """Whether a pair needs no further check: two tensors alike in all that matters."""
    return (
        isinstance(t, Tensor)
        and isinstance(s, Tensor)
        and t.dtype is s.dtype
        and t.dtype in checks.FLOATS
        and t.shape == s.shape
        and t.device == s.device
        and t.is_contiguous()
    )


def _paired(target: dict, source: dict) -> list[tuple[Tensor, Tensor]]:
    """Tensors of the same name, after every check."""
    if target.keys() != source.keys():
        differing = sorted(map(str, target.keys() ^ source.keys()))
        raise ValueError(f"source: expected the tensors of target, got other names: {', '.join(differing[:5])}")
    for name, t in target.items():
        s = source[name]
        # Hundreds of tensors a step: the common case takes one line.
        if _plain(t, s):
            continue
        if not isinstance(t, Tensor) or not isinstance(s, Tensor):
            raise TypeError(f"source[{name}]: expected Tensors, got {type(t).__name__} and {type(s).__name__}")
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


def _update(pairs: list[tuple[Tensor, Tensor]], momentum: float) -> None:
    if momentum == 1:  # 0 * Inf of a source would be NaN
        pairs = [(t, s) for t, s in pairs if not t.is_floating_point()]
    by_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
    for pair in pairs:
        by_device.setdefault(pair[0].device, []).append(pair)
    for device, here in by_device.items():
        target, source = map(list, zip(*here, strict=True))
        if backends.choose("ema_update_", device.type) == "reference":
            reference.ema_update_(target, source, momentum)
        else:
            torch.ops.ssl_fast.ema_update_(target, source, float(momentum))
