"""Every form of every loss with fake tensors on cuda:1: those of loss_cases.py, and functions beside them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from fake_device import Device, backward
from torch import Tensor, nn

from ssl_fast import LearnableTemperature, NegativeQueue, functional
from tests.helpers import loss_cases

HERE = "cuda:1"


class Inputs:
    """Tensors for loss_cases' makers of arguments, without values."""

    def __init__(self, count: int, negatives: int, dim: int, dtype: torch.dtype):
        self.device, self.count, self.negatives, self.dim, self.dtype = HERE, count, negatives, dim, dtype

    def rows(self, seed: int, *sizes: int) -> Tensor:
        return torch.empty(*(sizes or (self.count,)), self.dim, dtype=self.dtype, device=HERE)

    def ids(self, seed: int, count: int, of: int) -> Tensor:
        return torch.empty(count, dtype=torch.int64, device=HERE)

    def queue(self) -> NegativeQueue:
        return NegativeQueue(self.negatives, self.dim, dtype=self.dtype).to(HERE)

    def bank(self) -> Tensor:
        return self.rows(4, self.negatives)


class Case(NamedTuple):
    """arguments: of the function, but for the temperature; gradients: of which of them.

    reduces: whether it takes reduction and return_stats. needs_kernels: whether without kernels it is another case.
    """

    function: Callable[..., Any]
    arguments: Callable[[Inputs], dict[str, Any]]
    gradients: tuple[str, ...]
    reduces: bool = True
    needs_kernels: bool = False


def scalar(value: float = 0.5, device: str = HERE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((), value, dtype=dtype, device=device)


def leaf(value: float = 0.5, device: str = HERE, dtype: torch.dtype = torch.float32) -> Tensor:
    return scalar(value, device, dtype).requires_grad_()


def module() -> LearnableTemperature:
    with torch.device(HERE):  # a fake parameter cannot be moved
        return LearnableTemperature()


# Numbers and tensors for a temperature.
TEMPERATURES: dict[str, Callable[[], Any]] = {
    "number": lambda: 0.1,
    "large scale": lambda: 0.01,  # no fixed shift: the other kernels
    "tensor": scalar,
    "leaf": leaf,
    "float64 leaf": lambda: leaf(dtype=torch.float64),
    "on the CPU": lambda: scalar(device="cpu"),
    "leaf on the CPU": lambda: leaf(device="cpu"),
    "module": module,
}


def _siglip(x: Inputs, bias: Any) -> dict[str, Any]:
    return {"a": x.rows(0), "b": x.rows(1), "bias": bias}


def _clip(x: Inputs, **options: Any) -> dict[str, Any]:
    return {"a": x.rows(0), "b": x.rows(1), **options}


def _nce(x: Inputs, normalizer: Any) -> dict[str, Any]:
    index = torch.empty(x.count, dtype=torch.int64, device=HERE)
    noise = torch.empty(x.count, 5, dtype=torch.int64, device=HERE)
    return {"features": x.rows(0), "index": index, "noise": noise, "bank": x.bank(), "normalizer": normalizer}


def _views(x: Inputs, labels: bool = True, **options: Any) -> dict[str, Any]:
    return {"features": x.rows(0, x.count, 3), "labels": x.ids(0, x.count, 4) if labels else None, **options}


def _lse(x: Inputs, **options: Any) -> dict[str, Any]:
    return {"a": x.rows(0), "b": x.rows(1, x.negatives), **options}


def _lse_ids(x: Inputs, name: str, **options: Any) -> dict[str, Any]:
    return _lse(x, **{name: (x.ids(0, x.count, 4), x.ids(1, x.negatives, 4))}, **options)


def _lse_of_one(x: Inputs, **options: Any) -> dict[str, Any]:
    a = x.rows(0)
    return {"a": a, "b": a, **options}


def similarity_lse(temperature: Any, columns: bool = False, **arguments: Any) -> Tensor:
    """`functional.similarity_lse` at the scale that is given as a temperature, as one loss."""
    if isinstance(temperature, nn.Module):
        temperature = temperature()
    result = functional.similarity_lse(scale=temperature, columns=columns, **arguments)
    return result[0].sum() + result[1].sum() if columns else result


_AB, _F = ("a", "b"), ("features",)
CASES: dict[str, Case] = {
    name: Case(getattr(functional, loss_cases.operator_of(name)), case.arguments, case.gradients)
    for name, case in loss_cases.ALL_CASES.items()
} | {
    "clip as they are": Case(functional.clip, lambda x: _clip(x, normalize=False), _AB),
    "siglip as they are": Case(functional.siglip, lambda x: _clip(x, normalize=False), _AB),
    "siglip, a bias on the device": Case(functional.siglip, lambda x: _siglip(x, scalar(-10.0)), _AB),
    "siglip, a learnt bias": Case(functional.siglip, lambda x: _siglip(x, leaf(-10.0)), (*_AB, "bias")),
    "siglip, a bias on the CPU": Case(functional.siglip, lambda x: _siglip(x, scalar(-10.0, "cpu")), _AB),
    "supcon views, labels": Case(functional.supcon, _views, _F),
    "supcon views, in": Case(functional.supcon, lambda x: _views(x, False, form="in"), _F),
    "supcon, rows with positives": Case(
        functional.supcon, lambda x: _views(x, count_without_positive=False), _F
    ),
    "instance_nce": Case(functional.instance_nce, lambda x: _nce(x, 10.0), _F),
    "instance_nce, on the device": Case(functional.instance_nce, lambda x: _nce(x, scalar(10.0)), _F),
    "instance_nce, on the CPU": Case(functional.instance_nce, lambda x: _nce(x, scalar(10.0, "cpu")), _F),
    "similarity_lse": Case(similarity_lse, _lse, _AB, False),
    "similarity_lse, self": Case(similarity_lse, lambda x: _lse(x, exclude="self"), _AB, False),
    "similarity_lse, ids": Case(similarity_lse, lambda x: _lse_ids(x, "exclude"), _AB, False),
    "similarity_lse, only": Case(similarity_lse, lambda x: _lse_ids(x, "only", normalize=False), _AB, False),
    "similarity_lse, columns": Case(similarity_lse, lambda x: _lse(x, columns=True), _AB, False),
    "similarity_lse, one": Case(similarity_lse, _lse_of_one, ("a",), False),
    "similarity_lse, one, self": Case(similarity_lse, lambda x: _lse_of_one(x, exclude="self"), ("a",), False),
}  # fmt: skip


def function_of(case: str) -> Callable[..., Any]:
    return CASES[case].function


def arguments_of(
    case: str, count: int = 30, negatives: int = 48, dim: int = 17, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """By name, without the temperature; the tensors that may get a gradient are leaves that want one."""
    arguments = CASES[case].arguments(Inputs(count, negatives, dim, dtype))
    wanted = [arguments[name] for name in CASES[case].gradients if isinstance(arguments[name], Tensor)]
    for x in wanted:
        x.requires_grad_()
    return arguments


def is_leaf(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and x.is_leaf


class Trace(NamedTuple):
    """What `Device` has seen, up to a point."""

    launches: list[str]
    computed: list[str]
    calls: list[str]
    copies: list[str]
    waits: list[str]
    wrong: list[str]


def seen(gpu: Device) -> Trace:
    return Trace(*(list(getattr(gpu, name)) for name in Trace._fields))


def assert_clean(what: Trace | Device, returns: int = 0) -> None:
    """Nothing was copied, waited for or launched in the wrong place. returns: gradients of CPU numbers that go back."""
    assert not what.wrong
    assert not what.waits
    assert len(what.copies) == returns, what.copies
    assert all(copy.startswith("aten._to_copy of cpu and cuda:1") for copy in what.copies), what.copies


def step(gpu: Device, case: str, arguments: dict[str, Any], temperature: Any) -> tuple[Trace, Trace, Any]:
    """(what the forward pass did, what both did, what the function returned)."""
    gpu.clear()
    result = function_of(case)(**arguments, temperature=temperature)
    forward = seen(gpu)
    loss = result[0] if isinstance(result, tuple) else result
    if loss.requires_grad:
        backward(loss)
    whole = seen(gpu)
    gpu.clear()
    return forward, whole, result
