"""Argument checks of the public functions: one line that names the argument, what came, what was expected."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor, nn

from .formulas.scalars import TEMPERATURES, on_device
from .operators.codes import REDUCTIONS

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REAL: Any = numbers.Real  # whose comparisons type checkers do not know
FORMS = ("out", "in")  # of losses with several positives: their mean outside or inside the log
# What the middle dimension of a 3-D argument counts.
_GROUPS = {"negatives": "negatives", "positives": "positives", "features": "views"}


def dense(name: str, x: Any) -> None:
    """A Tensor in strides: neither sparse nor nested nor quantized."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        kind = "quantized" if x.is_quantized else "nested" if x.is_nested else x.layout
        raise TypeError(f"{name}: expected a dense tensor, got a {kind} one")


def flags(**values: Any) -> None:
    """Bools, by their names."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def embeddings(name: str, x: Any, dims: tuple[int, ...] = (2,)) -> None:
    """A float tensor of one of these numbers of dimensions, none of them empty."""
    dense(name, x)
    if x.dim() not in dims:
        expected = " or ".join({2: "(rows, dim)", 3: f"(rows, {_GROUPS.get(name)}, dim)"}[d] for d in dims)
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {x.dtype}")
    if 0 in x.shape:
        raise ValueError(f"{name}: expected at least one row and one dimension, got shape {tuple(x.shape)}")


def same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} as {other_name}, got {x.device}")


def pair(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors of embeddings whose rows belong together."""
    embeddings(other_name, other)
    embeddings(name, x)
    if x.shape != other.shape:
        raise ValueError(f"{name}: expected shape {tuple(other.shape)} as {other_name}, got {tuple(x.shape)}")
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype} as {other_name}, got {x.dtype}")
    same_device(name, x, other_name, other)


def temperature(value: Any, device: torch.device | None = None) -> Any:
    """A number whose size is in TEMPERATURES, or a 0-D float tensor (whose value is not read: no sync).

    A module is called for its value first (`LearnableTemperature`). Returns the number, or the tensor on the device.
    device: of the embeddings, where they are known; a tensor lies there or on the CPU (`formulas.scalars.on_device`).
    """
    if isinstance(value, nn.Module):
        try:
            value = value()
        except TypeError as error:
            kind = type(value).__name__
            raise TypeError(f"temperature: expected a module that is called without arguments, got {kind}") from error
    scale("temperature", value, device)
    return value if device is None else on_device(value, device)


def scale(name: str, value: Any, device: torch.device | None = None) -> None:
    """A number whose size is in TEMPERATURES, or a 0-D float tensor."""
    scalar(name, value, device)
    # Comparisons only: torch.compile traces through here.
    if not isinstance(value, Tensor) and not TEMPERATURES[0] <= abs(value) <= TEMPERATURES[1]:
        raise ValueError(f"{name}: expected a number whose size is from 1e-8 to 1e8, got {value}")


def scalar(name: str, value: Any, device: torch.device | None = None) -> None:
    """A number, or a 0-D float tensor on the embeddings' device or the CPU."""
    if isinstance(value, Tensor):
        dense(name, value)
        if device is not None and value.device != device and value.device.type != "cpu":
            raise ValueError(f"{name}: expected device {device} or cpu, got {value.device}")
        if value.dim() != 0 or value.dtype not in FLOATS:
            raise ValueError(
                f"{name}: expected a number or a 0-D float tensor, got shape {tuple(value.shape)}, {value.dtype}"
            )
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number or a 0-D float tensor, got {type(value).__name__}")
    elif isinstance(value, int) and abs(value) >= 2**1024:
        raise ValueError(f"{name}: expected a number that float64 holds, got an int of {value.bit_length()} bits")


def sizes(**values: Any) -> None:
    """Ints of at least 1, by their names."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        if not 1 <= value < 2**63:
            raise ValueError(f"{name}: expected at least 1{'' if value < 1 else ' and below 2**63'}, got {value}")


def float_dtype(name: str, value: Any) -> None:
    if not isinstance(value, torch.dtype) or value not in FLOATS:
        got = value if isinstance(value, torch.dtype) else type(value).__name__
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {got}")


def number(name: str, value: Any, least: float, below: float = float("inf")) -> None:
    """A number from `least` up to but not including `below`."""
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not least <= value < below or (isinstance(value, int) and value >= 2**1024):
        raise ValueError(f"{name}: expected a number of at least {least} and below {below}, got {value}")


def ids(name: str, x: Any, shape: tuple[int, ...], other_name: str, other: Tensor) -> None:
    """Integers that belong to the rows of `other`, of any values."""
    dense(name, x)
    if x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {x.dtype}")
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)} for {other_name}, got {tuple(x.shape)}")
    same_device(name, x, other_name, other)


def places(name: str, x: Tensor, size: int) -> None:
    """From 0 to size - 1, where that can be read without waiting for a device; there it is asserted later."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return
    least, most = (int(extreme) for extreme in x.aminmax())
    if least < 0 or most >= size:
        raise ValueError(f"{name}: expected places from 0 to {size - 1}, got {least if least < 0 else most}")


def weights(value: Any, x: Tensor) -> None:
    """(N,) floats, one for each of the N rows or images of x."""
    dense("weights", value)
    if value.dtype not in FLOATS:
        raise TypeError(f"weights: expected float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.shape != x.shape[:1]:
        raise ValueError(f"weights: expected shape {tuple(x.shape[:1])}, one a row, got {tuple(value.shape)}")
    same_device("weights", value, "the embeddings", x)


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(allowed)}, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def reduction(value: Any) -> None:
    choice("reduction", value, REDUCTIONS)


def momentum(value: Any, name: str = "momentum") -> None:
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name}: expected a number from 0 to 1, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")


def momentum_or_tensor(value: Any) -> Any:
    """A momentum as above, or a 0-D float32 or float64 tensor: read where it lies on the CPU, else not (no sync)."""
    if not isinstance(value, Tensor):
        momentum(value)
        return value
    dense("momentum", value)
    if value.dim() != 0 or value.dtype not in (torch.float32, torch.float64):
        shape = tuple(value.shape)
        raise ValueError(f"momentum: expected a number or a 0-D float32 or float64 tensor, got {shape}, {value.dtype}")
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return value
    momentum(value.item())
    return value.item()


def generator_seed(value: Any) -> None:
    """None or an int that torch.Generator takes."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"seed: expected an int or None, got {type(value).__name__}")
    if value is not None and not -(2**63) <= value < 2**64:
        raise ValueError(f"seed: expected an int of 64 bits or None, got {value}")


def seed(value: Any) -> None:
    """None, an int of 64 bits, or a 0-D int64 tensor."""
    if isinstance(value, Tensor):
        dense("seed", value)
        if value.dim() != 0 or value.dtype != torch.int64:
            raise ValueError(f"seed: expected an int or a 0-D int64 tensor, got {tuple(value.shape)}, {value.dtype}")
    elif value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"seed: expected an int, a 0-D int64 tensor or None, got {type(value).__name__}")
    elif value is not None and not -(2**63) <= value < 2**63:
        raise ValueError(f"seed: expected an int of 64 bits, got {value}")
