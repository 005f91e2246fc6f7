"""What the conformance tests share: ours beside the installed library's, values, gradients and errors."""

import pytest
import torch

# Of float32 the bound of a drop-in; of half types the library's own rounding, which ours does not share.
RELATIVE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 1e-2}


def with_gradients(call, tensors):
    """The value of call(*tensors), and the gradients of its sum with respect to each."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = call(*leaves)
    return value.detach(), torch.autograd.grad(value.sum(), leaves, allow_unused=True)


def assert_agree(ours, theirs, *tensors, relative=None, least=1e-2):
    """Values, and gradients relative to the largest entry of each, or to `least` where all of them are smaller."""
    relative = relative or RELATIVE[tensors[0].dtype]
    (value, gradients), (expected, expected_gradients) = (with_gradients(call, tensors) for call in (ours, theirs))
    assert value.shape == expected.shape
    close(value, expected, relative)
    for got, truth in zip(gradients, expected_gradients, strict=True):
        if truth is None:
            assert got is None or not got.any()
        else:
            close(got if got is not None else torch.zeros_like(truth), truth, relative, least)


def close(got, truth, relative, least=1e-2):
    """Relative to the largest entry of the truth, or to `least` where all is smaller: a loss or gradient near 0."""
    got, truth = got.double(), truth.double()
    scale = max(truth.abs().max().item(), least) if truth.numel() else 1.0
    torch.testing.assert_close(got, truth, rtol=0, atol=relative * scale)


def assert_same_error(ours, theirs, same_text=True):
    """Both calls raise, the same type (ours may be a subclass), with the same words unless they are torch's own."""
    with pytest.raises(Exception) as expected:  # noqa: PT011
        theirs()
    with pytest.raises(expected.type) as got:
        ours()
    if same_text:
        assert str(got.value) == str(expected.value)
