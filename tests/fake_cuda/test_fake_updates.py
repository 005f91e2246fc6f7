"""The momentum update, the queue and the bank on fake CUDA tensors: only the first update of a list copies."""

import threading
import time

import pytest
import torch
from fake_cases import HERE, assert_clean, scalar
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import ssl_fast
from ssl_fast import FlatMomentum, MemoryBank, NegativeQueue, cosine_momentum, ema_update_
from ssl_fast.formulas.rows import unit_rows
from ssl_fast.memory import flat_momentum

ema = pytest.importorskip("ssl_fast.kernels.ema", reason="triton is not installed")


def lists(*dtypes, transposed=False):
    def make(dtype):
        x = torch.ones(5, 7, device=HERE).to(dtype)
        return x.T.contiguous().T if transposed else x

    return [[make(dtype) for dtype in dtypes] for _ in range(2)]


def seed():
    return torch.full((), 3, dtype=torch.int64, device=HERE)


def encoder():
    with torch.device(HERE):
        return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))


MIXED = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
MOMENTA = {
    "number": lambda: 0.9,
    "on the CPU": lambda: torch.tensor(0.9),
    "on the device": lambda: scalar(0.9),
    "a schedule": lambda: cosine_momentum(seed(), 40, 0.9),
}


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("with_seed", ["none", "number", "tensor"])
def test_ema_update(momentum, with_seed, gpu):
    target, source = lists(*MIXED)
    value, noise = MOMENTA[momentum](), {"none": None, "number": 3, "tensor": seed()}[with_seed]
    gpu.clear()
    ema_update_(target, source, value, seed=noise)
    # The addresses, once: two tables for each of the three launches.
    assert len(gpu.copies) == 2 * len(gpu.launches)
    gpu.clear()
    ema_update_(target, source, value, seed=noise)
    assert_clean(gpu)
    # float64, and integers beside it, apart from the others.
    assert gpu.launches == ["_ema_kernel"] * 2


def test_pairs_of_other_layouts_and_shared_memory(gpu):
    target, source = lists(torch.float32)[0], lists(torch.float32, transposed=True)[1]
    both = lists(torch.float32)[0]
    for momentum in (0.9, scalar(0.9)):
        ema_update_(target, source, momentum, seed=3)
        gpu.clear()
        ema_update_(target, source, momentum, seed=3)
        ema_update_(both, both, momentum)  # one tensor for target and source: no launch of ours
        assert_clean(gpu)
        assert not gpu.launches


def test_a_capture_copies_nothing(gpu):
    """The stream of the tensors' device is captured; that another device is the current one does not hide it."""
    target, source = lists(torch.float32, torch.bfloat16)
    gpu.capturing = 1
    with pytest.raises(RuntimeError, match="update them once"):
        ema_update_(target, source, 0.9)
    assert not gpu.copies
    assert not gpu.launches
    gpu.capturing = None
    ema_update_(target, source, 0.9)
    gpu.clear()
    gpu.capturing = 1
    ema_update_(target, source, scalar(0.9), seed=seed())
    assert_clean(gpu)
    assert gpu.launches


def test_a_capture_elsewhere_is_none_here(gpu):
    target, source = lists(torch.float32)
    gpu.capturing = 0
    ema_update_(target, source, 0.9)
    assert gpu.launches == ["_ema_kernel"]


class _Slow(dict):
    """After each look other threads have their turn."""

    def __contains__(self, key):
        found = super().__contains__(key)
        time.sleep(1e-3)
        return found

    def __iter__(self):
        found = super().__iter__()
        time.sleep(1e-3)
        return found


@pytest.mark.parametrize("kept", [2, 5])
def test_plans_are_found_by_several_threads(kept, monkeypatch):
    """Four lists, all kept or some always made anew, which each thread meets in its own order."""
    pairs = [[torch.ones(3), torch.ones(3)] for _ in range(4)]
    monkeypatch.setattr(ema, "KEPT_PLANS", kept)
    monkeypatch.setattr(ema, "_plans", ema._Plans())
    monkeypatch.setattr(ema._plans, "_by_key", _Slow())
    failures = []

    def run(step):
        try:
            for i in range(20):
                t, s = pairs[i * step % len(pairs)]
                assert ema._plan_of([t], [s]).launches
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(step,)) for step in (1, 1, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("buffers", ["copy", "ema", "keep"])
def test_modules(buffers, gpu):
    target, source = encoder(), encoder()
    ema_update_(target, source, 0.9, buffers)
    gpu.clear()
    ema_update_(target, source, 0.9, buffers)
    assert_clean(gpu)
    assert gpu.launches == ["_ema_kernel"]


def test_flat_momentum(gpu, monkeypatch):
    monkeypatch.setattr(flat_momentum, "Tensor", FakeTensor)  # which it would refuse, as any subclass
    query = encoder()
    key = FlatMomentum(query)
    key.update_(0.9)
    gpu.clear()
    for momentum in (0.9, scalar(0.9)):
        key.update_(momentum)
        assert_clean(gpu)
    assert gpu.launches == ["_ema_kernel"] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queue(dtype, gpu):
    queue = NegativeQueue(48, 17, dtype=dtype, ids=True).to(HERE)
    for count, normalize in ((30, False), (30, True), (70, True)):
        keys = torch.empty(17, count, device=HERE).T
        gpu.clear()
        queue.enqueue_(keys, normalize, ids=torch.zeros(count, dtype=torch.int64, device=HERE))
        assert_clean(gpu)
        assert gpu.launches == ["_enqueue_kernel"]
        assert "aten.clone" not in gpu.computed  # keys of their own are read where they lie
    queue.enqueue_(queue.queue[:5], ids=torch.zeros(5, dtype=torch.int64, device=HERE))
    assert "aten.clone" in gpu.computed
    assert_clean(gpu)


def test_bank(gpu):
    bank = MemoryBank(48, 17).to(HERE)
    gpu.clear()
    bank.update_(torch.zeros(30, dtype=torch.int32, device=HERE), unit_rows(torch.ones(30, 17, device=HERE)))
    assert_clean(gpu)


@pytest.mark.parametrize("operator", ["ema_update_", "enqueue_"])
def test_the_reference_copies_nothing(operator, gpu):
    target, source = lists(*MIXED)
    queue = NegativeQueue(48, 17).to(HERE)
    value, noise, keys = scalar(0.9), seed(), torch.ones(30, 17, device=HERE)
    gpu.clear()
    with ssl_fast.backend("reference"):
        if operator == "enqueue_":
            queue.enqueue_(keys, normalize=True)
        else:
            for momentum in (0.9, value):
                ema_update_(target, source, momentum, seed=noise)
    assert_clean(gpu)
    assert not gpu.launches
