"""Losses over a process group, captured in a CUDA graph: where all ranks have as many rows, nothing is read or copied.

The group is PyTorch's fake one, of two ranks: its collectives do nothing to tensors that hold nothing.
"""

import inspect

import pytest
import torch
import torch.distributed as dist
from fake_cases import CASES, HERE, arguments_of, assert_clean, function_of, leaf, step
from torch.testing._internal.distributed.fake_pg import FakeStore

from ssl_fast import NegativeQueue
from ssl_fast.parallel.group import Ring

GROUPED = [case for case in CASES if "group" in inspect.signature(function_of(case)).parameters]
TRAVELS = [case for case in GROUPED if not case.startswith(("supcon", "siglip"))]  # the others refuse a Ring


@pytest.fixture(scope="module")
def group(_possible):
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize(("case", "kind"), [(x, "group") for x in GROUPED] + [(x, "ring") for x in TRAVELS])
def test_a_capture_neither_copies_nor_waits(case, kind, group, gpu):
    gpu.capturing = 1
    options = {"return_stats": True, "group": group if kind == "group" else Ring(group)}
    _, whole, _ = step(gpu, case, arguments_of(case) | options, leaf())
    assert_clean(whole)
    assert whole.launches


def test_outside_of_a_capture_the_numbers_of_rows_are_read(group, gpu):
    """Once a call; the number goes to the device without a copy."""
    with pytest.raises(RuntimeError):  # what was gathered has no value
        step(gpu, "nt_xent", arguments_of("nt_xent") | {"group": group}, 0.1)
    assert len(gpu.waits) == 2  # tolist() of a fake tensor reads number by number
    assert not gpu.copies


def test_a_queue_of_a_group(group, gpu):
    queue = NegativeQueue(48, 17, ids=True).to(HERE)
    gpu.capturing = 1
    gpu.clear()
    queue.enqueue_(torch.ones(30, 17, device=HERE), ids=torch.zeros(30, dtype=torch.int64, device=HERE), group=group)
    assert_clean(gpu)
    assert gpu.launches == ["_enqueue_kernel"]
