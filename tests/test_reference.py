"""The specification itself: against the NumPy oracle, closed forms, torch's cross entropy and finite differences."""

import math

import numpy as np
import oracle
import pytest
import torch
from evaluate import assert_stats
from hypothesis import given
from hypothesis import strategies as st
from strategies import dims, embeddings, kinds, rows, seeds, temperatures
from torch.nn.functional import cross_entropy, normalize

from ssl_fast import NegativeQueue, reference

FORMS = ["in batch", "shared", "own", "queue"]


def info_nce_case(form, count, dim, negatives, kind="ordinary", seed=0):
    """Query, positive and negatives of one form in float64, and the same for the oracle."""
    query = embeddings(count, dim, torch.float64, kind, seed)
    positive = embeddings(count, dim, torch.float64, kind, seed + 1)
    if form == "in batch":
        return query, positive, None, (None, False)
    if form == "queue":
        queue = NegativeQueue(negatives, dim, dtype=torch.float64, seed=seed % 1000)
        # Not unit rows, as they are taken as they are.
        queue.queue *= torch.linspace(0.5, 1.5, negatives, dtype=torch.float64)[:, None]
        return query, positive, queue, (queue.queue.numpy(), True)
    n = embeddings(count * negatives if form == "own" else negatives, dim, torch.float64, kind, seed + 2)
    n = n.view(count, negatives, dim) if form == "own" else n
    return query, positive, n, (n.numpy(), False)


def assert_rows(loss, expected: oracle.Rows, temperature):
    # Logits reach |s|: their rounding is the error of a loss near 0.
    tolerance = 1e-13 * max(1, abs(1 / temperature))
    np.testing.assert_allclose(loss.numpy(), expected.loss, rtol=1e-12, atol=tolerance)


@given(rows, dims, kinds, temperatures, seeds)
def test_nt_xent_is_the_oracle(count, dim, kind, temperature, seed):
    z1 = embeddings(count, dim, torch.float64, kind, seed)
    z2 = embeddings(count, dim, torch.float64, kind, seed + 1)
    expected = oracle.nt_xent(z1.numpy(), z2.numpy(), temperature)
    loss, stats = reference.nt_xent(z1, z2, temperature, "none", return_stats=True)
    assert_rows(loss, expected, temperature)
    assert_stats(stats, expected, temperature, torch.float64)


@given(st.sampled_from(FORMS), st.integers(1, 20), dims, st.integers(1, 30), kinds, temperatures, seeds)
def test_info_nce_is_the_oracle(form, count, dim, negatives, kind, temperature, seed):
    query, positive, n, for_oracle = info_nce_case(form, count, dim, negatives, kind, seed)
    expected = oracle.info_nce(query.numpy(), positive.numpy(), for_oracle[0], temperature, for_oracle[1])
    loss, stats = reference.info_nce(query, positive, n, temperature, "none", return_stats=True)
    assert_rows(loss, expected, temperature)
    assert_stats(stats, expected, temperature, torch.float64)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_reductions_are_the_oracle(reduction):
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64)
    expected = oracle.reduce(oracle.nt_xent(z1.numpy(), z2.numpy(), 0.2).loss, reduction)
    np.testing.assert_allclose(reference.nt_xent(z1, z2, 0.2, reduction).numpy(), expected, rtol=1e-12)
    expected = oracle.reduce(oracle.info_nce(z1.numpy(), z2.numpy(), None, 0.2).loss, reduction)
    np.testing.assert_allclose(reference.info_nce(z1, z2, None, 0.2, reduction).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_are_nan_as_in_the_oracle(bad):
    z1, z2 = torch.randn(2, 6, 4, dtype=torch.float64)
    z1[2, 1] = bad
    assert_rows(reference.nt_xent(z1, z2, 0.3, "none"), oracle.nt_xent(z1.numpy(), z2.numpy(), 0.3), 0.3)
    assert_rows(reference.info_nce(z1, z2, None, 0.3, "none"), oracle.info_nce(z1.numpy(), z2.numpy(), None, 0.3), 0.3)


@pytest.mark.parametrize("temperature", [0.07, 1.0, -0.3])
def test_all_rows_equal(temperature):
    z = torch.randn(4, dtype=torch.float64).expand(7, 4)
    loss, stats = reference.nt_xent(z, z, temperature, return_stats=True)
    assert loss.item() == pytest.approx(math.log(2 * 7 - 1), rel=1e-12)
    assert stats.top1 == stats.top5 == 1  # ties go to the positive
    loss, stats = reference.info_nce(z, z, z[:1].expand(11, 4), temperature, return_stats=True)
    assert loss.item() == pytest.approx(math.log(11 + 1), rel=1e-12)
    assert stats.top1 == 1


def test_orthogonal_pairs():
    z = 3 * torch.eye(5, dtype=torch.float64)
    loss, stats = reference.nt_xent(z, z, 0.5, return_stats=True)
    # 2N - 2 negatives of similarity 0 beside a positive of 1, s = 2.
    assert loss.item() == pytest.approx(math.log1p(8 * math.exp(-2)), rel=1e-12)
    assert (stats.positive_similarity, stats.negative_similarity) == (1, 0)
    assert reference.info_nce(z, z, None, 0.5).item() == pytest.approx(math.log1p(4 * math.exp(-2)), rel=1e-12)


def test_one_pair_has_no_loss():
    z1, z2 = torch.randn(2, 1, 8, dtype=torch.float64)
    for loss, stats in (
        reference.nt_xent(z1, z2, return_stats=True),
        reference.info_nce(z1, z2, return_stats=True),
    ):
        assert loss == 0
        assert stats.top1 == 1
        assert stats.negative_similarity.isnan()


def test_nt_xent_is_torch_cross_entropy():
    z1, z2 = torch.randn(2, 8, 6, dtype=torch.float64)
    z = normalize(torch.cat([z1, z2]))
    logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    target = torch.arange(16).roll(8)
    for reduction in ("none", "mean", "sum"):
        expected = cross_entropy(logits, target, reduction=reduction)
        torch.testing.assert_close(reference.nt_xent(z1, z2, 0.1, reduction), expected)


def test_info_nce_is_torch_cross_entropy():
    q, k, n = normalize(torch.randn(3, 8, 6, dtype=torch.float64), dim=2)
    torch.testing.assert_close(reference.info_nce(q, k), cross_entropy(q @ k.T / 0.1, torch.arange(8)))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / 0.1
    torch.testing.assert_close(reference.info_nce(q, k, n), cross_entropy(logits, torch.zeros(8, dtype=torch.int64)))


@pytest.mark.parametrize("temperature", [0.3, -0.7, 0.02])
def test_gradcheck_nt_xent(temperature):
    z = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, t: reference.nt_xent(z[0], z[1], t, "none"), (z, t))
    assert torch.autograd.gradgradcheck(lambda z, t: reference.nt_xent(z[0], z[1], t), (z, t))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_info_nce(form):
    query, positive, negatives, _ = info_nce_case(form, 4, 3, 5)
    t = torch.tensor(0.3, dtype=torch.float64)
    inputs = [query, positive, t] + ([negatives] if isinstance(negatives, torch.Tensor) else [])
    inputs = [x.requires_grad_() for x in inputs]

    def loss(query, positive, t, given=negatives):
        return reference.info_nce(query, positive, given, t, "none")

    assert torch.autograd.gradcheck(loss, inputs)


def test_normalize_at_the_ends_of_the_range():
    x = torch.tensor([[3e38, -3e38], [3e-38, 4e-38], [0, 0], [3, 4]], dtype=torch.float32)
    u = reference.unit_rows(x)
    expected = torch.tensor([[0.5**0.5, -(0.5**0.5)], [3e-26, 4e-26], [0, 0], [0.6, 0.8]])
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=0)
    assert reference.unit_rows(torch.tensor([[math.inf, 1.0]])).isnan().any()
