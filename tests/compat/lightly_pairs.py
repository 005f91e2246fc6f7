"""What the tests beside lightly share: views, and ours and theirs of one seed."""

import lightly.loss
import pytest
import torch
from agreement import with_gradients
from hypothesis import strategies as st

from ssl_fast.compat import lightly as ours

theirs = lightly.loss
counts, dims, seeds = st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31 - 1)
temperatures = st.one_of(st.floats(0.05, 1), st.floats(-1, -0.05), st.sampled_from([30.0, 5]))
wide = st.sampled_from([torch.float32, torch.float64])
copy_warning = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # their weights
LOSSES = [("NTXentLoss", (0.1,)), ("NTXentLoss", (0.1, (9, 5))), ("DCLLoss", (0.1,)), ("DCLWLoss", (0.1,))]
every_loss = pytest.mark.parametrize(("name", "arguments"), LOSSES)


def views(seed, count, dim, dtype=torch.float32):
    """(2, N, D) of lengths 1/2 to 2."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2, count, dim, generator=generator, dtype=dtype), dim=2)
    return directions * (0.5 + 1.5 * torch.rand(2, count, 1, generator=generator, dtype=dtype))


def agree(our_loss, their_loss, z, temperature):
    """As assert_agree; a gradient that is a difference of larger ones, as all are for D = 1, is bound by those."""
    relative = {torch.float64: 1e-11, torch.float32: 1e-5}[z.dtype]
    (value, gradients), (expected, expected_gradients) = (with_gradients(loss, z) for loss in (our_loss, their_loss))
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape == ()
    for got, truth in zip([value, *gradients], [expected, *expected_gradients], strict=True):
        scale = max(truth.abs().max().item(), 0.1 / abs(temperature))
        torch.testing.assert_close(got, truth, rtol=0, atol=relative * scale)


def pair(name, *arguments, **options):
    """Ours and theirs of one seed: a bank of the same rows."""
    made = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        made.append(getattr(module, name)(*arguments, **options))
    return made
