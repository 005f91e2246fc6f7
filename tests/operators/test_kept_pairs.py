"""What the CPU's forward passes keep of all pairs for the backward pass: the same gradients, within a budget."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.backends import only_compiled

pytestmark = only_compiled
COUNT, DIM = 210, 100  # several blocks, ragged
MEGABYTES = 24  # the budget unless SSL_FAST_KEPT_MB says otherwise
IDS = torch.arange(COUNT) % 50
ONES = torch.ones(COUNT)


def rows(seed: int, dtype: torch.dtype, count: int = COUNT) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nt_xent(a, b, keep):
    *_, sums = torch.ops.ssl_fast.nt_xent(a, b, 10.0, None, 1, False, keep)
    return sums, torch.ops.ssl_fast.nt_xent_backward(torch.tensor(2.0), a, b, 10.0, None, 1, sums)


def lse(a, b, keep, ids=(None, None), mask=0, columns=False):
    *_, sums = torch.ops.ssl_fast.similarity_lse(a, b, *ids, mask, True, True, columns, 10.0, None, None, keep)
    of_columns = ONES if columns else None
    return sums, torch.ops.ssl_fast.similarity_lse_backward(
        ONES, of_columns, a, b, *ids, mask, True, True, 10.0, None, sums, True, b is not None
    )


SAME_BITS = {
    "nt_xent": nt_xent,
    "rows with each other": lambda a, b, keep: lse(a, None, keep, (IDS, None), mask=3),
    "both directions": lambda a, b, keep: lse(a, b, keep, mask=1, columns=True),
    "one direction": lambda a, b, keep: lse(a, b, keep, (IDS, IDS.flip(0)), mask=2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", SAME_BITS)
def test_kept_exponentials_give_the_same_bits(name, dtype):
    a, b = rows(0, dtype), rows(1, dtype)
    kept, with_kept = SAME_BITS[name](a, b, True)
    sums, without = SAME_BITS[name](a, b, False)
    assert kept.dim() == 1
    assert sums.dim() == 2
    for got, expected in zip(with_kept, without, strict=True):
        assert torch.equal(got, expected)


def test_kept_sigmoids_give_the_same_gradients():
    a, b, bias, g = rows(0, torch.float32), rows(1, torch.float32), torch.tensor(-3.0), torch.ones(COUNT)
    found = []
    for keep in (True, False):
        sums, _, kept = torch.ops.ssl_fast.similarity_softplus(a, b, True, 10.0, None, bias, None, keep)
        assert (kept.numel() > 0) is keep
        found.append(
            torch.ops.ssl_fast.similarity_softplus_backward(g, a, b, True, 10.0, None, bias, sums, kept, True, True)
        )
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize("scale", [10.0, 100.0])  # with the fixed shift, and with a running maximum
def test_in_batch_a_loss_with_a_graph_has_the_bits_of_one_without(scale):
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    losses = [
        torch.ops.ssl_fast.info_nce(a, b, None, True, scale, None, 0, True, gradient, keep)[:2]
        for gradient in (True, False)
        for keep in (True, False)
    ]
    for loss, stats in losses[1:]:
        assert torch.equal(loss, losses[0][0])
        assert torch.equal(stats, losses[0][1])


def test_only_what_fits_the_budget_is_kept():
    within, beyond = (torch.ones(count, 96) for count in (2496, 2512))  # their squares are 23.8 and 24.1 MB
    for x, fits in ((within, True), (beyond, False)):
        _, _, _, sums = torch.ops.ssl_fast.similarity_lse(
            x, None, None, None, 1, True, True, False, 1.0, None, None, True
        )
        assert (sums.dim() == 1) is fits
        assert sums.nbytes <= (MEGABYTES + 1) * 2**20


def test_pairs_of_short_rows_are_not_worth_keeping():
    a, b = (rows(seed, torch.float32)[:, :95] for seed in (0, 1))
    assert nt_xent(a, b, True)[0].shape == (2, 2 * COUNT)


def test_without_a_graph_nothing_is_kept():
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    assert torch.ops.ssl_fast.nt_xent(a, b, 10.0, None, 1, False)[2].shape == (2, 2 * COUNT)
    assert torch.ops.ssl_fast.nt_xent(a.requires_grad_(), b, 10.0, None, 1, False)[2].dim() == 1


def test_sums_of_another_problem_are_refused():
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    sums, _ = nt_xent(a, b, True)
    for wrong in (sums[:-1], sums.double(), torch.cat([sums, sums])):
        with pytest.raises(ValueError, match="sums: expected what the forward pass returned"):
            torch.ops.ssl_fast.nt_xent_backward(torch.tensor(2.0), a, b, 10.0, None, 1, wrong)


@pytest.mark.long
@pytest.mark.parametrize(("value", "message"), [("0", ""), ("x", "SSL_FAST_KEPT_MB: expected a number of megabytes")])
def test_the_environment_sets_the_budget(value, message):
    code = (
        "import torch, ssl_fast\n"
        "z = torch.randn(4, 99, requires_grad=True)\n"
        "print(torch.ops.ssl_fast.nt_xent(z, z, 10.0, None, 1, False)[2].shape)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "SSL_FAST_KEPT_MB": value}, capture_output=True, text=True
    )
    if message:
        assert answer.returncode
        assert message in answer.stderr.splitlines()[-1]
    else:
        assert answer.stdout == "torch.Size([2, 8])\n"
