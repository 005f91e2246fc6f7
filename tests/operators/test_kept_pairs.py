"""What the CPU's forward passes keep of all pairs for the backward pass: the same gradients, within a budget."""

import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.backends import only_compiled

pytestmark = only_compiled
COUNT, DIM = 210, 100  # several blocks, ragged
MEGABYTES = 24  # the budget of short rows unless SSL_FAST_KEPT_MB says otherwise
SCALES = [10.0, 100.0]  # with the fixed shift exponentials are kept, with a running maximum dots
IDS = torch.arange(COUNT) % 50
ONES = torch.ones(COUNT)


def rows(seed: int, dtype: torch.dtype, count: int = COUNT) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)).to(dtype)


def nt_xent(a, b, scale, keep):
    *_, sums = torch.ops.ssl_fast.nt_xent(a, b, scale, None, 1, False, keep)
    return sums, torch.ops.ssl_fast.nt_xent_backward(torch.tensor(2.0), a, b, scale, None, 1, sums)


def info_nce(a, b, scale, keep, negatives=None, normalize=True):
    *_, sums, means = torch.ops.ssl_fast.info_nce(a, b, negatives, normalize, scale, None, 1, False, True, keep)
    return sums, torch.ops.ssl_fast.info_nce_backward(
        torch.tensor(2.0), a, b, negatives, negatives is None, normalize, scale, None, 1, sums, means, True
    )


def lse(a, b, scale, keep, ids=(None, None), mask=0, columns=False, normalize=True):
    settings = mask, True, normalize, columns, scale, None
    *_, sums = torch.ops.ssl_fast.similarity_lse(a, b, *ids, *settings, None, keep)
    of_columns = ONES if columns else None
    return sums, torch.ops.ssl_fast.similarity_lse_backward(
        ONES, of_columns, a, b, *ids, *settings[:3], *settings[4:], sums, True, b is not None
    )


def others(a, count):
    return rows(7, a.dtype, count)


OPERATORS = {
    "nt_xent": nt_xent,
    "in batch": info_nce,
    "shared negatives": lambda a, b, *o: info_nce(a, b, *o, negatives=others(a, 333)),
    "many shared negatives": lambda a, b, *o: info_nce(a, b, *o, negatives=others(a, 9 * COUNT)),
    "negatives as they are": lambda a, b, *o: info_nce(a, b, *o, negatives=others(a, 333), normalize=False),
    "rows with each other": lambda a, b, *o: lse(a, None, *o, ids=(IDS, None), mask=3),
    "both directions": lambda a, b, *o: lse(a, b, *o, mask=1, columns=True),
    "both directions, as they are": lambda a, b, *o: lse(a, b, *o, mask=1, columns=True, normalize=False),
    "one direction": lambda a, b, *o: lse(a, b, *o, ids=(IDS, IDS.flip(0)), mask=2),
    "few rows": lambda a, b, *o: lse(a, others(a, 17), *o),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_kept_pairs_give_the_same_gradients(name, dtype, scale):
    a, b = rows(0, dtype), rows(1, dtype)
    kept, with_kept = OPERATORS[name](a, b, scale, True)
    sums, without = OPERATORS[name](a, b, scale, False)
    assert kept.dim() == 1
    assert not kept.isnan().any()
    assert sums.dim() == 2
    assert torch.equal(kept[: sums.numel()], sums.flatten())
    # The order of sums differs; bfloat16 results are rounded once.
    bound = {torch.float32: 3e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8}[dtype]
    for got, expected in zip(with_kept, without, strict=True):
        if expected.numel():
            torch.testing.assert_close(got, expected, rtol=0, atol=bound * expected.abs().max().item())


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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("negatives", [None, 333, 9 * COUNT])
def test_a_loss_with_a_graph_has_the_bits_of_one_without(negatives, scale):
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    others = negatives and rows(2, torch.float32, negatives)
    losses = [
        torch.ops.ssl_fast.info_nce(a, b, others, True, scale, None, 0, True, gradient, keep)[:2]
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


def test_wide_rows_may_keep_four_times_their_memory():
    for count, fits in ((2688, True), (2736, False)):  # of rows of 336, which take 8 * 336 numbers a row at most
        x = torch.ones(count, 336)
        *_, sums = torch.ops.ssl_fast.similarity_lse(x, None, None, None, 1, True, True, False, 1.0, None, None, True)
        assert (sums.dim() == 1) is fits
        assert sums.nbytes <= max(MEGABYTES * 2**20, 8 * x.nbytes) + 2**20


def test_pairs_of_short_rows_are_not_worth_keeping():
    a, b = (rows(seed, torch.float32)[:, :95] for seed in (0, 1))
    assert nt_xent(a, b, 10.0, True)[0].shape == (2, 2 * COUNT)


def test_without_a_graph_nothing_is_kept():
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    assert torch.ops.ssl_fast.nt_xent(a, b, 10.0, None, 1, False)[2].shape == (2, 2 * COUNT)
    assert torch.ops.ssl_fast.nt_xent(a.requires_grad_(), b, 10.0, None, 1, False)[2].dim() == 1


def test_sums_of_another_problem_are_refused():
    a, b = rows(0, torch.float32), rows(1, torch.float32)
    sums, _ = nt_xent(a, b, 10.0, True)
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
