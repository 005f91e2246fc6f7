"""A row of what is measured, and the steps that are timed: what all suites share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

TEMPERATURE = 0.1


@dataclass
class Work:
    """One row: `runs` by name, ours is "ssl_fast"; flops and bytes that the work needs, where known."""

    suite: str
    name: str
    size: int
    runs: dict[str, Callable[[], object]]
    flops: float = 0.0
    bytes: float = 0.0
    memory: dict[str, object] | None = None  # arguments of measure.loss_memory
    about: dict[str, object] = field(default_factory=dict)
    threads: int | None = None  # of the whole run unless given


def in_float64(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """The loss of the same tensors in float64: the truth that all are held to."""
    return loss(*(x.double() for x in inputs))


def verified(losses: dict[str, Callable], truth: Tensor, inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    """The losses, after each has given the float64 truth: no wrong answer is timed."""
    for name, loss in losses.items():
        value = loss(*inputs).item()
        if not abs(value - truth.item()) <= 1e-4 * abs(truth.item()):
            raise AssertionError(f"{name} gives {value}, the float64 reference {truth.item()}")
    return losses


def steps(losses: dict[str, Callable], inputs: tuple[Tensor, ...]) -> dict[str, Callable]:
    """Forward and backward of each loss."""

    def step(loss):
        for x in inputs:
            x.grad = None
        loss(*inputs).backward()

    return {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
