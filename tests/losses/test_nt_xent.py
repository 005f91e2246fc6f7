"""NT-Xent on every backend against float64. What it shares with InfoNCE is in test_losses.py."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import functional
from tests.helpers import oracle
from tests.helpers.backends import INTERPRETED, device_of, every_backend, every_fused_backend
from tests.helpers.evaluate import assert_agrees, assert_stats
from tests.helpers.strategies import (
    BOUNDARY,
    DTYPES,
    dims,
    dtypes,
    embeddings,
    kinds,
    lay_out,
    layouts,
    rows,
    seeds,
    subsets,
    temperatures,
    upstream,
    upstream_kinds,
)

on_every_backend = every_backend("nt_xent")


def views(count, dim, dtype, backend, kind="ordinary", seed=0):
    device = device_of(backend)
    return {name: embeddings(count, dim, dtype, kind, seed + i).to(device) for i, name in enumerate(("z1", "z2"))}


@on_every_backend
@given(rows, dims, dtypes, kinds, layouts, temperatures, seeds, subsets(["z1", "z2", "temperature"]), upstream_kinds)
def test_any_input(backend, count, dim, dtype, kind, layout, temperature, seed, wants, upstream_kind):
    arguments = {name: lay_out(x, layout) for name, x in views(count, dim, dtype, backend, kind, seed).items()}
    assert_agrees(
        "nt_xent",
        backend,
        arguments,
        torch.tensor(temperature, dtype=torch.float64 if dtype == torch.float64 else torch.float32),
        sorted(wants),
        "none",
        upstream(2 * count, seed, upstream_kind),
        with_eager=True,
        floor=0.1,
    )


# The last of these spans several blocks in rows and columns, with ragged edges.
SIZES = [(1, 1), (1, 7), (2, 1), (3, 5), (16, 16), (33, 65), (64, 128), (70, 140), (150, 33)]
SIZES += [(145, 260)] if INTERPRETED else [(350, 128), (550, 260)]


@every_fused_backend("nt_xent")
@pytest.mark.parametrize(("count", "dim"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 0.5, -0.2])
def test_sizes_within_the_contract(backend, count, dim, dtype, temperature):
    # In one dimension the gradient is 0 but for rounding.
    floor = 1.0 if dim == 1 else 0.0
    assert_agrees("nt_xent", backend, views(count, dim, dtype, backend), temperature, ["z1", "z2"], floor=floor)


@on_every_backend
@pytest.mark.parametrize(("count", "dim"), [(3, 5), (70, 140), (110 if INTERPRETED else 350, 128), (130, 600)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_dtypes_and_small_temperature(backend, count, dim, dtype, temperature):
    # Upstream gradients of about 1, so that float16 gradients are no subnormal numbers.
    gradient = upstream(2 * count, 0, "random")
    arguments = views(count, dim, dtype, backend)
    assert_agrees("nt_xent", backend, arguments, temperature, ["z1", "z2"], "none", gradient, with_eager=True)


@on_every_backend
@pytest.mark.parametrize("temperature", [0.001, 0.02, BOUNDARY * (1 - 1e-7), BOUNDARY * (1 + 1e-7), -0.02, -0.001])
@pytest.mark.parametrize("count", [5, 300])
def test_float64_on_both_sides_of_the_fixed_shift(backend, temperature, count):
    arguments = views(count, 40, torch.float64, backend)
    t = torch.tensor(temperature, dtype=torch.float64)
    assert_agrees("nt_xent", backend, arguments, t, ["z1", "z2", "temperature"], with_eager=True)


@on_every_backend
def test_views_that_almost_agree(backend):
    # What training ends at: losses near 0 and gradients that nearly cancel keep their relative accuracy.
    z1 = embeddings(60, 128, torch.float32, "ordinary", 0).to(device_of(backend))
    arguments = {"z1": z1, "z2": z1 + 0.05 * torch.randn_like(z1)}
    assert_agrees("nt_xent", backend, arguments, 0.1, ["z1", "z2"], with_eager=True)


@on_every_backend
@pytest.mark.parametrize("temperature", [0.1, 0.01, -0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_stats_are_the_oracle(backend, temperature, dtype, count):
    arguments = views(count, 6, dtype, backend)
    z1, z2 = arguments["z1"], arguments["z1"] + 0.7 * arguments["z2"]
    expected = oracle.nt_xent(z1.cpu().double().numpy(), z2.cpu().double().numpy(), temperature)
    with ssl_fast.backend(backend):
        _, stats = functional.nt_xent(z1, z2, temperature, return_stats=True)
    assert_stats(stats, expected, temperature, dtype)


@every_fused_backend("nt_xent")
@pytest.mark.parametrize("count", [3, 64, 170])
@pytest.mark.parametrize("dim", [1, 33, 128])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_all_rows_equal(backend, count, dim, temperature):
    z = torch.randn(dim, device=device_of(backend)).expand(count, dim)
    with ssl_fast.backend(backend):
        loss, stats = functional.nt_xent(z, z, temperature, return_stats=True)
    assert loss.item() == pytest.approx(math.log(2 * count - 1), rel=2e-6)
    assert stats.top1 == stats.top5 == 1  # ties go to the positive


@on_every_backend
@given(st.sampled_from([1, 2, 5, 50, 200]), dims, seeds)
def test_exact_ties_and_counts(backend, count, dim, seed):
    # One-hot rows: similarities are exactly 0 or 1, so ranks are too.
    arguments = views(count, dim, torch.float32, backend, "one-hot", seed)
    expected = oracle.nt_xent(*(x.cpu().numpy() for x in arguments.values()), 0.2) if count <= 50 else None
    with ssl_fast.backend(backend):
        stats = functional.nt_xent(*arguments.values(), 0.2, return_stats=True)[1]
    if expected is None:
        with ssl_fast.backend("reference"):
            wide = (x.double() for x in arguments.values())
            shares = [x.item() for x in functional.nt_xent(*wide, 0.2, return_stats=True)[1][:2]]
    else:
        shares = [oracle.top_share(expected, 0.2, top)[0] for top in (1, 5)]
    assert [stats.top1.item(), stats.top5.item()] == pytest.approx(shares, abs=1e-6)


@on_every_backend
def test_swapping_the_views_swaps_everything(backend):
    arguments = views(37, 19, torch.float32, backend)
    with ssl_fast.backend(backend):
        one = functional.nt_xent(arguments["z1"], arguments["z2"], 0.1, reduction="none")
        other = functional.nt_xent(arguments["z2"], arguments["z1"], 0.1, reduction="none")
    torch.testing.assert_close(one, other.roll(37), rtol=1e-5, atol=1e-6)


@on_every_backend
@pytest.mark.parametrize(("temperature", "size"), [(0.025, 65536), (0.03, 1e20), (0.05, 1e30), (0.025, 1e-30)])
def test_upstream_gradients_of_any_size(backend, temperature, size):
    """1 / Z reaches exp(80): its product with the upstream gradient must not overflow."""
    v = torch.eye(1, 4)
    noise = 0.05 * torch.randn(2, 3, 4)  # with less, the normalisation's gradient cancels to rounding
    arguments = {"z1": torch.cat([v, -v, -v]) + noise[0], "z2": -v.repeat(3, 1) + noise[1]}
    arguments = {name: x.to(device_of(backend)) for name, x in arguments.items()}
    gradient = size * upstream(6, 0, "random")
    assert_agrees("nt_xent", backend, arguments, temperature, ["z1", "z2"], "none", gradient, with_eager=True)


@every_fused_backend("nt_xent")
@pytest.mark.parametrize("temperature", [10.0, 1e6, -10.0])
def test_ranks_where_exponentials_collide(backend, temperature):
    arguments = views(200, 64, torch.float64, backend)
    base = arguments["z1"][:1]
    near = {name: base + 1e-3 * x for name, x in arguments.items()}
    with ssl_fast.backend("reference"):
        expected = functional.nt_xent(*near.values(), temperature, return_stats=True)[1]
    with ssl_fast.backend(backend):
        stats = functional.nt_xent(*near.values(), temperature, return_stats=True)[1]
    assert stats.top1.item() == pytest.approx(expected.top1.item(), abs=0.01)
    assert stats.top5.item() == pytest.approx(expected.top5.item(), abs=0.01)


@every_fused_backend("nt_xent")
@pytest.mark.parametrize("dim", [300, 2048, 4096])
def test_long_rows_of_one_sign(backend, dim):
    # One chain of sums would drift: all its terms have one size.
    arguments = {name: 1 + 0.1 * x for name, x in views(20, dim, torch.float32, backend).items()}
    assert_agrees("nt_xent", backend, arguments, 0.1, ["z1", "z2"], with_eager=True)
