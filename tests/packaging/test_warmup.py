"""warmup: runs everything, changes nothing."""

import pytest
import torch

import ssl_fast
from tests.helpers.backends import on_devices


@on_devices
def test_it_runs_every_loss_and_leaves_the_random_numbers(device):
    torch.manual_seed(3)
    expected = torch.randn(4, device=device)
    torch.manual_seed(3)
    ssl_fast.warmup(device, [(6, 8), (5, 3)], (torch.float32, torch.bfloat16), queue_size=16)
    assert torch.equal(torch.randn(4, device=device), expected)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match=r"dtypes: expected float32.*got torch.int32"):
        ssl_fast.warmup("cpu", [(4, 4)], (torch.int32,))
    with pytest.raises(ValueError, match="shapes: expected at least 1, got 0"):
        ssl_fast.warmup("cpu", [(0, 4)])
