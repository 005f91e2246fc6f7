"""Known answers of fake_device.py: it sees what copies, waits or launches in the wrong place, and nothing else."""

from contextlib import suppress

import pytest
import torch
from fake_device import backward
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from ssl_fast.kernels.engine import loss_rows, unit_rows

HERE = "cuda:1"


def x():
    return torch.ones(4, 3, device=HERE)


def cpu(**options):
    return torch.tensor(0.5, **options)


COPIES = {
    "tensor of a number": lambda: torch.tensor(3.0, device=HERE),
    "as_tensor of a number": lambda: torch.as_tensor(3, device=HERE),
    "new_tensor": lambda: x().new_tensor(3.0),
    "to": lambda: torch.ones(2).to(HERE),
    "to, not blocking": lambda: torch.ones(2).to(HERE, non_blocking=True),
    "cpu": lambda: x().cpu(),
    "copy_": lambda: x().copy_(torch.ones(4, 3)),
    "where by a CPU condition": lambda: torch.where(cpu() > 0, x(), x()),
    "where with a CPU value": lambda: torch.where(x() > 0, x(), cpu()),
    "a row from the CPU": lambda: x().__setitem__(0, torch.ones(3)),
    "another device": lambda: x().to("cuda:0"),
}
WAITS = {
    "item": lambda: x().sum().item(),
    "bool": lambda: bool(x().sum() > 0),
    "float": lambda: float(x().sum()),
    "if": lambda: 1 if x().any() else 0,
    "a mask as an index": lambda: x()[x() > 0],
    "nonzero": lambda: x().nonzero(),
    "unique": lambda: x().unique(),
    "equal": lambda: torch.equal(x(), x()),
    "repeats of the device": lambda: x().repeat_interleave(torch.ones(4, dtype=torch.int64, device=HERE), 0),
    "a stream": lambda: torch.cuda.current_stream(HERE).synchronize(),
}
NEITHER = {
    "full": lambda: torch.full((), 3.0, device=HERE),
    "arange": lambda: torch.arange(4, device=HERE),
    "a CPU factor": lambda: x() * cpu() + cpu() / x(),
    "a value of the CPU": lambda: cpu().item(),
    "where with a number": lambda: torch.where(x() > 0, x(), float("nan")),
    "a number in a slice": lambda: x().__setitem__(slice(1, 2), 1.0),
    "integers as an index": lambda: x()[torch.zeros(2, dtype=torch.int64, device=HERE)],
    "repeats of the host": lambda: x().repeat_interleave(3, 0),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_seen(name, gpu):
    COPIES[name]()
    assert gpu.copies
    assert not gpu.waits


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_seen(name, gpu):
    with suppress(DynamicOutputShapeException, DataDependentOutputException):  # a fake tensor has nothing to give
        WAITS[name]()
    assert gpu.waits


@pytest.mark.parametrize("name", NEITHER)
def test_nothing_else_is(name, gpu):
    NEITHER[name]()
    assert not gpu.copies
    assert not gpu.waits


def test_a_gradient_that_goes_back_is_a_copy(gpu):
    temperature = cpu(requires_grad=True)
    loss = (x().requires_grad_() / temperature).sum()
    assert not gpu.copies
    backward(loss)
    assert gpu.copies == ["aten._to_copy of cpu and cuda:1 in autograd"]
    assert temperature.grad.device == torch.device("cpu")


def test_gradients_are_those_of_the_engine():
    """On the CPU, where autograd's engine runs too: broadcasting, several uses, dtypes, several outputs."""

    def loss_of(a, b, c):
        first, second = (a * b + a.double()).float().unbind(1)[:2]
        return (first * second / c).sum() + torch.cat([a, a * c]).exp().mean()

    tensors = [torch.randn(shape, requires_grad=True) for shape in ((4, 3), (3,), ())]
    expected = torch.autograd.grad(loss_of(*tensors), tensors)
    backward(loss_of(*tensors))
    for tensor, gradient in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor.grad, gradient)


def test_a_launch_outside_of_a_device_guard_is_seen(gpu):
    unit_rows.prepare([x()], torch.float32, x())
    assert gpu.wrong
    gpu.clear()
    with torch.cuda.device_of(x()):
        unit_rows.prepare([x()], torch.float32, x())
    assert not gpu.wrong
    assert gpu.launches == ["_prepare_kernel"]


def test_an_output_unlike_its_fake_kernels_is_seen(gpu, monkeypatch):
    monkeypatch.setattr(loss_rows, "SUMS_ROWS", 2)
    torch.ops.ssl_fast.nt_xent(x(), x(), 10.0, None, 1, False)
    assert any("output 2 of nt_xent" in what for what in gpu.wrong)


def test_each_storage_has_an_address_of_its_own(gpu):
    a, b = x(), x()
    assert a.data_ptr() == a.view(-1).data_ptr() != b.data_ptr()
    assert a[1].data_ptr() - a.data_ptr() == 12
    assert a.untyped_storage().data_ptr() == a.data_ptr()
