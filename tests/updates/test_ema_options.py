"""The momentum update beyond a number and the nearest rounding: momentum on the device, random rounding, schedules."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import cosine_momentum, ema_update_, reference
from ssl_fast.formulas import rounding
from tests.helpers.backends import device_of, every_backend
from tests.helpers.strategies import DTYPES, seeds

on_every_backend = every_backend("ema_update_")
MOMENTUM = 0.999


def operator(backend):
    """What the backend runs, by the operator's own arguments."""
    if backend == "reference":
        return lambda t, s, momentum, on_device=None, seed=None: reference.ema_update_(
            t, s, momentum if on_device is None else on_device, seed
        )
    return torch.ops.ssl_fast.triton_ema_update_ if backend == "triton" else torch.ops.ssl_fast.ema_update_


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=4), st.sampled_from(DTYPES), st.sampled_from(DTYPES),
    st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 1.0])), seeds,
)  # fmt: skip
def test_momentum_on_the_device(backend, dtype, sizes, target_dtype, source_dtype, momentum, seed):
    generator = torch.Generator().manual_seed(seed)
    target, source = (
        [torch.randn(size, generator=generator).to(device_of(backend), kind) for size in sizes]
        for kind in (target_dtype, source_dtype)
    )
    first, expected = ([x.clone() for x in target] for _ in range(2))
    reference.ema_update_(expected, source, momentum)
    # The number beside it is not used.
    operator(backend)(target, source, 0.123, torch.tensor(momentum, dtype=dtype, device=device_of(backend)))
    for x, y, before, other in zip(target, expected, first, source, strict=True):
        eps = max(torch.finfo(target_dtype).eps, torch.finfo(torch.float32).eps)
        # Of the two terms, whose sum may be near 0; some processors round their product and sum at once.
        terms = momentum * before.double().abs() + (1 - momentum) * other.double().abs()
        assert ((x.double() - y.double()).abs() <= 2 * eps * terms + eps * 1e-3).all()


@on_every_backend
@pytest.mark.parametrize("momentum", [1.0, 1.5, -0.25, math.nan, math.inf])
def test_what_the_host_cannot_check(backend, momentum):
    device = device_of(backend)
    target, source = torch.ones(3, device=device), torch.tensor([math.inf, math.nan, 0.0], device=device)
    operator(backend)([target], [source], 0.5, torch.tensor(momentum, device=device))
    if momentum == 1:
        assert target.tolist() == [1, 1, 1]
    else:
        assert target.isnan().all()


@on_every_backend
def test_a_bfloat16_target_needs_random_rounding(backend):
    """The problem: at momentum 0.999 a step is below half of bfloat16's resolution. The cure: a seed."""
    device = device_of(backend)
    source = torch.full((4000,), 1.5, device=device, dtype=torch.bfloat16)
    nearest, at_random = (torch.ones(4000, device=device, dtype=torch.bfloat16) for _ in range(2))
    exact = torch.ones(1, dtype=torch.float64)
    steps = 300
    with ssl_fast.backend(backend):
        for step in range(steps):
            ema_update_([nearest], [source], MOMENTUM)
            ema_update_([at_random], [source], MOMENTUM, seed=step)
            exact = MOMENTUM * exact + (1 - MOMENTUM) * 1.5
    assert nearest.eq(1).all()  # it never moved
    assert exact.item() == pytest.approx(1.5 - 0.5 * MOMENTUM**steps)
    # The mean of 4000 independent walks; each step of one adds at most a gap's variance, (1 / 128)^2 / 4.
    deviation = math.sqrt(steps / 4000) / 256
    assert at_random.double().mean().item() == pytest.approx(exact.item(), abs=5 * deviation)
    assert at_random.unique().numel() > 5


@on_every_backend
@given(st.floats(-(2.0**127), 2.0**127, width=32), st.integers(-(2**63), 2**63 - 1))
def test_rounding_goes_to_a_neighbour(backend, x, seed):
    device = device_of(backend)
    source = torch.full((64,), x, device=device)
    target = torch.zeros(64, device=device, dtype=torch.bfloat16)
    with ssl_fast.backend(backend):
        ema_update_([target], [source], 0.0, seed=seed)
    low = torch.tensor(x).view(torch.int32) & ~0xFFFF  # towards zero
    neighbours = torch.stack([low, low + 0x10000]).view(torch.float32).tolist()
    assert set(target.float().tolist()) <= set(neighbours)
    if torch.tensor(x).bfloat16().double() == x:
        assert target.eq(x).all()


@on_every_backend
def test_the_mean_is_exact(backend):
    device, share = device_of(backend), torch.linspace(0.03, 0.97, 8)
    x = (1 + share / 128).to(device)  # between two bfloat16
    source = x.repeat_interleave(20_000)
    target = torch.zeros(len(source), device=device, dtype=torch.bfloat16)
    with ssl_fast.backend(backend):
        ema_update_([target], [source], 0.0, seed=1)
    ups = target.gt(1).view(8, -1).double().mean(1).cpu()
    torch.testing.assert_close(ups, share.double(), rtol=0, atol=5 * 0.5 / math.sqrt(20_000))


@on_every_backend
def test_seeds_tensors_and_elements_differ_and_repeat(backend):
    device = device_of(backend)

    def run(seed, dtype=torch.bfloat16):
        target = [torch.ones(500, device=device, dtype=dtype) for _ in range(2)]
        with ssl_fast.backend(backend):
            ema_update_(target, [torch.full((500,), 1.5, device=device)] * 2, 0.99, seed=seed)
        return target

    one, other = run(5)
    assert not one.equal(other)
    assert one.unique().numel() == 2
    assert one.equal(run(5)[0])
    assert one.equal(run(torch.tensor(5, device=device))[0])
    assert not one.equal(run(6)[0])
    assert not one.equal(run(5 + 2**40)[0])
    for dtype in (torch.float32, torch.float64, torch.float16):  # rounded to the nearest
        assert all(x.unique().numel() == 1 for x in run(5, dtype))


@on_every_backend
def test_the_bits_are_the_specified_ones_in_any_layout(backend):
    device = device_of(backend)
    for lay_out in (lambda x: x, lambda x: x.T.contiguous().T, lambda x: x[:, ::2]):
        source = lay_out(torch.linspace(1, 2, 40 * 30).view(40, 30)).to(device)
        target, expected = (lay_out(torch.ones(40, 30, dtype=torch.bfloat16, device=device)) for _ in range(2))
        seed = torch.tensor(7, device=device)
        with ssl_fast.backend(backend):
            ema_update_([target], [source], 0.0, seed=seed)
        reference.ema_update_([expected], [source], 0.0, seed)
        assert target.equal(expected)


def test_random_bits_are_balanced():
    bits = rounding.random_bits(torch.tensor(3), 1, torch.Size([2**15]))
    ones = torch.stack([bits >> k & 1 for k in range(32)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 5 * 0.5 / math.sqrt(2**15)
    # Neighbours, tensors and seeds one apart have nothing in common.
    for other in (bits.roll(1), rounding.random_bits(torch.tensor(3), 2, torch.Size([2**15])),
                  rounding.random_bits(torch.tensor(4), 1, torch.Size([2**15]))):  # fmt: skip
        agree = torch.stack([(bits ^ other) >> k & 1 for k in range(32)]).double().mean(1)
        assert (agree - 0.5).abs().max() < 5 * 0.5 / math.sqrt(2**15)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"momentum": torch.tensor(1.5)}, ValueError, "momentum: expected a number from 0 to 1, got 1.5"),
        ({"momentum": torch.tensor([0.5])}, ValueError, r"momentum: expected a number or a 0-D .* got \(1,\)"),
        ({"momentum": torch.tensor(0.5).half()}, ValueError, "momentum: expected a number or a 0-D float32 or float64"),
        ({"momentum": torch.tensor(0.5, device="meta")}, ValueError, "momentum: expected device cpu as the target"),
        ({"seed": 0.5}, TypeError, "seed: expected an int, a 0-D int64 tensor or None, got float"),
        ({"seed": True}, TypeError, "seed: expected an int, a 0-D int64 tensor or None, got bool"),
        ({"seed": 2**63}, ValueError, "seed: expected an int of 64 bits"),
        ({"seed": torch.tensor(5).int()}, ValueError, r"seed: expected an int or a 0-D int64 tensor, got \(\)"),
        ({"seed": torch.tensor(5, device="meta")}, ValueError, "seed: expected device cpu as the target"),
    ],
)
def test_refusals_change_nothing(options, error, message):
    target = torch.ones(3)
    with pytest.raises(error, match=message):
        ema_update_([target], [torch.zeros(3)], **{"momentum": 0.5, **options})
    assert target.eq(1).all()


def test_a_momentum_tensor_on_the_cpu_is_a_number():
    target = torch.ones(3)
    ema_update_([target], [torch.zeros(3)], torch.tensor(0.25))
    assert target.eq(0.25).all()


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_cosine_momentum(steps, share, start, end):
    step = share * steps
    value = cosine_momentum(step, steps, start, end)
    assert min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12
    assert cosine_momentum(0, steps, start, end) == pytest.approx(start)
    assert cosine_momentum(steps, steps, start, end) == end
    assert cosine_momentum(steps / 2, steps, start, end) == pytest.approx((start + end) / 2)
    on_device = cosine_momentum(torch.tensor(step, dtype=torch.float64), steps, start, end)
    assert on_device.dtype == torch.float64
    assert on_device.item() == pytest.approx(value, abs=1e-12)


def test_cosine_momentum_is_the_published_one():
    # MoCo v3: m = 1 - 0.5 (1 + cos(pi epoch / epochs)) (1 - 0.99); BYOL: 1 - (1 - 0.996) (cos(pi k / K) + 1) / 2
    assert cosine_momentum(30.5, 300, 0.99) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi * 30.5 / 300)) * 0.01)
    assert cosine_momentum(7, 1000, 0.996) == pytest.approx(1 - 0.004 * (math.cos(math.pi * 7 / 1000) + 1) / 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, 10, 0.9), ValueError, "step: expected a number of at least 0"),
        ((11, 10, 0.9), ValueError, "step: expected a number from 0 to 10, got 11"),
        ((1, 0, 0.9), ValueError, "steps: expected a number"),
        ((1, 10, 1.9), ValueError, "start: expected a number from 0 to 1, got 1.9"),
        ((1, 10, 0.9, -1), ValueError, "end: expected a number from 0 to 1, got -1"),
        (("1", 10, 0.9), TypeError, "step: expected a number, got str"),
        ((torch.ones(2), 10, 0.9), ValueError, "step: expected a number or a 0-D float tensor"),
    ],
)
def test_schedules_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        cosine_momentum(*arguments)


def test_a_step_tensor_outside_gives_nan():
    for step in (-1.0, 10.5, math.nan):
        assert cosine_momentum(torch.tensor(step), 10, 0.9).isnan()
    assert cosine_momentum(torch.tensor(3), 10, 0.9).item() == pytest.approx(cosine_momentum(3, 10, 0.9))
