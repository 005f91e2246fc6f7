"""What `simulated` promises: the device's host code inside, nothing changed outside, every report an error."""

import pytest
import torch

from tests.helpers.backends import only_compiled

pytest.importorskip("triton", reason="triton is not installed")

import triton
import triton.language as tl

from ssl_fast import functional, kernels
from ssl_fast.kernels.engine import loss_rows
from ssl_fast.kernels.tuning import table
from ssl_fast.operators import backends

from .launch import Machine, Reported, Run, simulated
from .simulator import Fault

VIEWS = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))


@only_compiled
def test_outside_all_is_as_before():
    allocate = torch.empty
    before = functional.nt_xent(*VIEWS), dict(kernels.registered), table.architecture(torch.device("cpu"))
    with simulated() as run:
        assert table.architecture(torch.device("cpu")) == "sm_80"
        assert run.machine.device == "sm_80"
    after = functional.nt_xent(*VIEWS), dict(kernels.registered), table.architecture(torch.device("cpu"))
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert "on cuda tensors" in backends.why_not("nt_xent", "triton", "cpu")
    assert torch.empty is allocate


@triton.jit
def _copy_kernel(source, target, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < count), mask=i < count)


@triton.jit
def _colliding_kernel(source, target, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(target + i // 2, tl.load(source + i))


def _run() -> tuple[Run, list[tuple[str, int]]]:
    launched: list[tuple[str, int]] = []
    return Run(Machine(), lambda text: text, lambda *of: launched.append(of)), launched


def test_launches_are_counted_and_memory_is_what_the_arguments_cover():
    run, launched = _run()
    source, target = torch.randn(300), torch.zeros(300)
    run.launch(_copy_kernel, (3,), (source, target, 300), {"BLOCK": 128})
    assert torch.equal(source, target)
    assert [name for name, _ in launched] == ["_copy_kernel"]
    assert launched[0][1] > 0
    with pytest.raises(Fault, match="bounds"):
        run.launch(_copy_kernel, (3,), (source[:299], target, 300), {"BLOCK": 128})


def test_a_report_is_an_error():
    with pytest.raises(Reported, match="different values"):
        _run()[0].launch(_colliding_kernel, (1,), (torch.randn(64), torch.zeros(32)), {"BLOCK": 64})


def test_fresh_memory_shows_when_it_is_read():
    with simulated():
        x = torch.empty(3), torch.ones(2).new_empty(2, 2), torch.empty(2, dtype=torch.int64)
    assert x[0].isnan().all()
    assert x[1].isnan().all()
    assert (x[2] == -123456789).all()


def test_what_is_small_in_a_test_takes_the_way_of_what_is_large():
    with simulated(Machine(slots=2, chunk_elements=3000)):
        assert table.slots(torch.device("cpu")) == 2
        assert table.CHUNK_ELEMENTS == 3000
    assert loss_rows.table.CHUNK_ELEMENTS > 3000
