"""Temperatures and other numbers that a loss takes as a Python number or as a 0-D tensor.

The scale is s = 1 / temperature, of any sign but not zero.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"  # a tensor is 0-D and may get a gradient
# Sizes of a temperature, and so of a scale. Beyond these, logits in float32 are rounding noise or all equal.
TEMPERATURES = (1e-8, 1e8)
# The same where a kernel reads a scale: moved outwards by what rounding may do to 1 / temperature.
SCALES = (0.9999999e-8, 1.0000001e8)


def in_range(value: Scalar) -> Any:
    """A temperature or a scale; a tensor's value outside SCALES becomes NaN. Public functions check numbers."""
    if not isinstance(value, Tensor):
        return value
    size = value.abs()
    return torch.where((size >= SCALES[0]) & (size <= SCALES[1]), value, float("nan"))


class _OnDevice(torch.autograd.Function):
    """The value of a 0-D CPU tensor on a device."""

    @staticmethod
    def forward(x: Tensor, device: torch.device) -> Tensor:
        # The value is passed to the device as an argument of the kernel that fills the tensor. A copy would wait.
        return torch.full((), x.item(), dtype=x.dtype, device=device)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is saved: the gradient is passed through."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.cpu(), None


def on_device(value: Scalar, device: torch.device) -> Any:
    """A number as it is; a 0-D CPU tensor as one on the embeddings' device, with its gradient.

    The forward pass copies nothing and waits for nothing. A gradient is copied back to the CPU, which waits for the
    device, only where the CPU tensor requires it.
    """
    if not isinstance(value, Tensor) or value.device == device:
        return value
    if torch.compiler.is_compiling():  # a trace cannot read the value
        return value.to(device, non_blocking=True)
    return _OnDevice.apply(value, device)


def sign_of(value: Scalar, dtype: torch.dtype) -> Any:
    """1 or -1, of a temperature or a scale: a number for a number, for a tensor a tensor where it lies."""
    if isinstance(value, Tensor):
        return torch.sign(value.detach().to(dtype))
    return math.copysign(1.0, value)


def inverse(value: Scalar) -> Any:
    """From a temperature to the scale, or back: 1 / value, of a tensor in float64, so that it is rounded once."""
    return value.double().reciprocal() if isinstance(value, Tensor) else 1 / float(value)
