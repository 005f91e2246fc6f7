"""The comparator catches what it is there for, at every dtype, and lets rounding pass."""

import math

import pytest
import torch

from tests.helpers.compare import BOUNDS, assert_close

DTYPES = list(BOUNDS)


def truth_of(rows=40, dim=25):
    return torch.randn(rows, dim, dtype=torch.float64)


def bound(dtype, truth, kind="gradient"):
    return getattr(BOUNDS[dtype], kind) * truth.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_rounding_within_the_bound_passes(dtype, kind):
    truth = truth_of()
    noise = torch.rand_like(truth) - 0.5
    assert_close(truth + noise * bound(dtype, truth, kind), truth, dtype, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_entry_is_named(dtype):
    truth = truth_of()
    got = truth.clone()
    got[17, 3] += 1.01 * bound(dtype, truth)
    with pytest.raises(AssertionError, match=r"worst at \(17, 3\)"):
        assert_close(got, truth, dtype, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_sign_flip(dtype):
    truth = truth_of()
    with pytest.raises(AssertionError, match="worst at"):
        assert_close(-truth, truth, dtype, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_bias_within_the_elementwise_bound(dtype):
    truth = truth_of()
    with pytest.raises(AssertionError, match="signed bias"):
        assert_close(truth + 0.3 * bound(dtype, truth), truth, dtype, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_factor_within_the_elementwise_bound(dtype):
    truth = truth_of()
    with pytest.raises(AssertionError, match="too large by the factor"):
        assert_close(truth * (1 + 0.9 * BOUNDS[dtype].gradient), truth, dtype, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_as_large_as_allowed_everywhere(dtype):
    truth = truth_of()
    signs = torch.where(torch.rand_like(truth) < 0.5, -1.0, 1.0)
    with pytest.raises(AssertionError, match="relative L2"):
        assert_close(truth + 0.9 * bound(dtype, truth) * signs, truth, dtype, "gradient")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_must_lie_at_the_same_places(bad):
    truth = truth_of()
    got = truth.clone()
    got[2, 5] = bad
    for one, other in ((got, truth), (truth, got)):
        with pytest.raises(AssertionError, match=r"differs at 1 places, \[\[2, 5\]\]"):
            assert_close(one, other, torch.float32, "gradient")
    assert_close(got, got.clone(), torch.float32, "gradient")


def test_the_rest_is_compared_beside_a_nan():
    truth = truth_of()
    truth[2, 5] = math.nan
    got = truth.clone()
    got[2, 6] += 1
    with pytest.raises(AssertionError, match=r"worst at \(2, 6\)"):
        assert_close(got, truth, torch.float32, "gradient")


def test_shape():
    with pytest.raises(AssertionError, match=r"shape \(40,\), expected \(40, 25\)"):
        assert_close(truth_of()[:, 0], truth_of(), torch.float32, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_widens_the_bound_but_not_beyond_its_cap(dtype):
    truth = truth_of()
    scale = truth.abs().max()
    eager, got = truth.clone(), truth.clone()
    eager[0, 0] += 1e-3 * scale
    got[1, 1] -= 1e-3 * scale
    with pytest.raises(AssertionError, match="worst at"):
        assert_close(got, truth, dtype, "gradient")
    assert_close(got, truth, dtype, "gradient", eager=eager)
    eager[0, 0] += scale
    got[1, 1] -= 0.02 * scale
    with pytest.raises(AssertionError, match="worst at"):
        assert_close(got, truth, dtype, "gradient", eager=eager)


def test_a_truth_of_zero_allows_nothing_unless_a_scale_is_given():
    zero, got = torch.zeros(20, dtype=torch.float64), torch.full((20,), 1e-7, dtype=torch.float64)
    got[::2] *= -1
    with pytest.raises(AssertionError, match="worst at"):
        assert_close(got, zero, torch.float32, "gradient")
    assert_close(got, zero, torch.float32, "gradient", scale=1.0)
