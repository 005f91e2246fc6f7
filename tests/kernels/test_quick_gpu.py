"""Every loss on a device: right values, no wait for the device, the same bits in a CUDA graph. Quick by itself.

With TRITON_INTERPRET=1 the values are tested on the CPU, which keeps this file from rotting.
"""

import pytest
import torch

from bench.gpu.timing import graph_of
from tests.helpers.backends import INTERPRETED, why_not
from tests.helpers.evaluate import assert_agrees
from tests.helpers.loss_cases import (
    ALL_CASES,
    REPRESENTATIVE,
    arguments_of,
    every_case,
    gradients_of,
    leaves,
    loss_of,
    operator_of,
)

reason = why_not("nt_xent", "triton")
pytestmark = [pytest.mark.quick, pytest.mark.skipif(bool(reason), reason=f"triton: {reason}")]
if not INTERPRETED:
    pytestmark.append(pytest.mark.gpu)
on_a_device = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 runs nothing on a device")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Every way through the kernels in every dtype; losses that share them, once.
CASES = [(case, dtype) for dtype in DTYPES for case in REPRESENTATIVE]
CASES += [(case, torch.float32) for case in ALL_CASES if case not in REPRESENTATIVE]
SIZES = {"count": 37, "negatives": 50, "dim": 20} if INTERPRETED else {"count": 150, "negatives": 333, "dim": 96}


@pytest.mark.parametrize(("case", "dtype"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_each_loss_in_each_dtype(case, dtype):
    arguments = arguments_of(case, "triton", dtype=dtype, **SIZES)
    assert_agrees(operator_of(case), "triton", arguments, 0.1, gradients_of(case), with_eager=True, floor=0.1)


def step_of(case, dtype=torch.float32, temperature=0.1):
    """The loss with statistics, forward and backward, and the leaves that it reads."""
    names = gradients_of(case)
    arguments = leaves(arguments_of(case, "triton", dtype=dtype, **SIZES), names)
    tensors = [arguments[name] for name in names]
    if isinstance(temperature, torch.Tensor):
        tensors.append(temperature)

    def step():
        for x in tensors:
            x.grad = None
        loss, stats = loss_of(case, "triton", arguments, temperature, return_stats=True)
        loss.backward()
        return [loss.detach(), *stats, *(x.grad for x in tensors)]

    return step, tensors


def learnt():
    return torch.full((), 0.2, device="cuda", requires_grad=True)


@on_a_device
@every_case(of=list(ALL_CASES))
@pytest.mark.parametrize("is_learnt", [False, True])
def test_each_loss_waits_for_nothing(case, is_learnt):
    step, _ = step_of(case, temperature=learnt() if is_learnt else 0.1)
    step()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_device
@every_case(of=list(ALL_CASES))
@pytest.mark.parametrize("is_learnt", [False, True])
def test_a_graph_of_each_loss_follows_its_inputs(case, is_learnt):
    """A replay on rows that were changed after the capture gives the bits of an eager step on them."""
    step, tensors = step_of(case, temperature=learnt() if is_learnt else 0.1)
    captured = []
    replay = graph_of(lambda: captured.append(step()))
    with torch.no_grad():
        for x in tensors:
            if x.dim():
                x.copy_(torch.randn_like(x))
            else:
                x.fill_(0.3)
    replay()
    torch.cuda.synchronize()
    replayed = [x.clone() for x in captured[-1]]
    for got, expected in zip(replayed, step(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
