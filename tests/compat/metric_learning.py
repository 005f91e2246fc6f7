"""What the tests beside pytorch-metric-learning share."""

import warnings

import pytest
import torch
from hypothesis import strategies as st
from pytorch_metric_learning import losses as theirs

from ssl_fast.compat import own_path
from ssl_fast.compat import pytorch_metric_learning as ours

LOSSES = ["NTXentLoss", "SupConLoss"]
every_loss = pytest.mark.parametrize("name", LOSSES)
names, seeds = st.sampled_from(LOSSES), st.integers(0, 2**31 - 1)
wide = st.sampled_from([torch.float32, torch.float64])
LABEL_TYPES = [torch.int64, torch.int32, torch.uint8, torch.float32, torch.bool]


@pytest.fixture(autouse=True)
def _only_fused():
    """No test runs the library's own path by accident: its warning is an error, each time."""
    own_path.say_own_path.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ssl_fast.compat")
        yield


def both(name, *arguments, **options):
    return [getattr(library, name)(*arguments, **options) for library in (ours, theirs)]


def rows(count, dim, seed=0, dtype=torch.float32):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).to(dtype)


def classes(count, number, seed=0):
    return torch.randint(number, (count,), generator=torch.Generator().manual_seed(seed))


def twice(count):
    return torch.arange(count).repeat(2)


def own_path_says(option, call):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(UserWarning, match=f"ssl_fast.compat.pytorch_metric_learning: {option} has no fused form"):
            call()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()  # once
