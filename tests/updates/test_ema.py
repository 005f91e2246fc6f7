"""The momentum update on every backend: bits, dtypes, strides, modules, and refusals that change nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ssl_fast
from ssl_fast import ema_update_
from tests.helpers.averages import assert_averaged
from tests.helpers.backends import device_of, every_backend, every_fused_backend, only_compiled
from tests.helpers.strategies import DTYPES, LAYOUTS, lay_out, seeds

on_every_backend = every_backend("ema_update_")
momenta = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.999, 0.5, 1 - 1e-9]))
OWN_MEMORY = [layout for layout in LAYOUTS if not layout.startswith("expanded")]


def update(backend, target, source, momentum, *options):
    with ssl_fast.backend(backend):
        ema_update_(target, source, momentum, *options)


@on_every_backend
@given(
    st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=5),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    momenta,
    seeds,
)
def test_lists_of_any_shapes(backend, shapes, target_dtype, source_dtype, momentum, seed):
    generator = torch.Generator().manual_seed(seed)
    target, source = (
        [torch.randn(shape, generator=generator).to(device_of(backend), dtype) for shape in shapes]
        for dtype in (target_dtype, source_dtype)
    )
    before = [x.clone() for x in target]
    sources_before = [x.clone() for x in source]
    update(backend, target, source, momentum)
    for got, t, s, s_before in zip(target, before, source, sources_before, strict=True):
        assert torch.equal(s, s_before)
        assert_averaged(got, t, s, momentum)


@on_every_backend
@pytest.mark.parametrize("target_layout", OWN_MEMORY)
@pytest.mark.parametrize("source_layout", LAYOUTS)
def test_strides(backend, target_layout, source_layout):
    target, source = torch.randn(2, 30, 41, device=device_of(backend)).unbind()
    laid_out = lay_out(target.clone(), target_layout)
    base = laid_out if laid_out._base is None else laid_out._base
    outside = base.isnan()
    of_source = lay_out(source, source_layout)
    update(backend, [laid_out], [of_source], 0.9)
    assert_averaged(laid_out, target, of_source, 0.9)
    assert torch.equal(base.isnan(), outside)  # nothing beside the view was written


@on_every_backend
def test_channels_last_keeps_its_layout(backend):
    target, source = torch.randn(2, 4, 6, 5, 5, device=device_of(backend)).unbind()
    before = target.clone()
    target = target.to(memory_format=torch.channels_last)
    for of_source in (source, source.to(memory_format=torch.channels_last)):
        update(backend, [target], [of_source], 0.5)
        assert_averaged(target, before, source, 0.5)
        assert target.is_contiguous(memory_format=torch.channels_last)
        before = target.clone()


# One stretch of the threads' work, its neighbours, and several.
@every_fused_backend("ema_update_")
@pytest.mark.parametrize("count", [1, 15, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, 5 * (1 << 15) + 77])
@pytest.mark.parametrize("dtype", DTYPES)
def test_stretches_and_threads(backend, count, dtype, one_and_two_threads):
    start, source = torch.randn(2, count, device=device_of(backend)).to(dtype).unbind()

    def run():
        target = [start.clone(), start[: count // 2].clone()]
        update(backend, target, [source, source[: count // 2]], 0.99)
        return target

    one, two = one_and_two_threads(run)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
        assert_averaged(a, start[: len(a)], source[: len(a)], 0.99)


@on_every_backend
def test_momentum_0_and_1_are_exact(backend):
    target, source = torch.randn(2, 1000, device=device_of(backend)).unbind()
    before = target.clone()
    update(backend, [target], [source], 1.0)
    assert torch.equal(target, before)
    update(backend, [target], [source], 0.0)
    assert torch.equal(target, source)


@on_every_backend
def test_momentum_1_keeps_the_target_beside_any_source(backend):
    target = torch.ones(3, device=device_of(backend))
    update(backend, [target], [torch.tensor([math.inf, math.nan, 0.0], device=device_of(backend))], 1.0)
    assert target.tolist() == [1, 1, 1]


SHARED = {
    "the same tensor twice": lambda x: ([x, x], [x.new_full(x.shape, 1.0), x.new_full(x.shape, 2.0)]),
    "a part of another": lambda x: ([x, x.view(200, -1)[:, :2]], [x + 1, x.view(200, -1)[:, :2] + 2]),
    "targets that are sources": lambda x: ([x[:30000], x[30000:60000]], [x[30000:60000], x[:30000]]),
    "shifted by one": lambda x: ([x[1:]], [x[:-1]]),
    "columns side by side": lambda x: ([*x.view(-1, 2).unbind(1)], [*(x.view(-1, 2) + 1).unbind(1)]),
    "itself": lambda x: ([x], [x]),
}  # fmt: skip


@every_fused_backend("ema_update_")
@pytest.mark.parametrize("kind", SHARED)
def test_shared_memory_is_as_in_the_reference(backend, kind, one_and_two_threads):
    """As if every pair were updated in turn, from what its source held then."""
    start = torch.randn(80000, device=device_of(backend))

    def run(name=backend):
        x = start.clone()
        update(name, *SHARED[kind](x), 0.5)
        return x

    expected = run("reference")
    for got in one_and_two_threads(run):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@every_fused_backend("ema_update_")
def test_shared_memory_under_two_storages(backend):
    """As views of NumPy arrays have: the addresses tell, not the storage."""
    if device_of(backend) != "cpu":
        pytest.skip("memory of the CPU alone can have two storages")

    def run(name):
        memory = np.linspace(-1, 1, 5001, dtype=np.float32)
        target, source = torch.from_numpy(memory[1:]), torch.from_numpy(memory[:-1])
        assert target.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
        update(name, [target], [source], 0.25)
        return target.clone()

    torch.testing.assert_close(run(backend), run("reference"), rtol=1e-6, atol=1e-6)


@on_every_backend
def test_bad_values_reach_the_target(backend):
    device = device_of(backend)
    target, source = torch.zeros(64, device=device), torch.zeros(64, device=device)
    source[3], source[40], target[7] = math.nan, math.inf, math.nan
    update(backend, [target], [source], 0.5)
    assert target.isnan().nonzero().flatten().tolist() == [3, 7]
    assert target[40] == math.inf


@on_every_backend
def test_integers_are_copied(backend):
    device = device_of(backend)
    target = [torch.zeros(5, device=device), torch.arange(3, device=device), torch.tensor([True], device=device)]
    source = [torch.ones(5, device=device), torch.arange(3, 6, device=device), torch.tensor([False], device=device)]
    update(backend, target, source, 0.75)
    assert torch.equal(target[0].cpu(), torch.full((5,), 0.25))
    assert target[1].tolist() == [3, 4, 5]
    assert target[2].tolist() == [False]


def model(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(5))


def models(backend):
    out = []
    for _ in range(2):
        one = model().to(device_of(backend))
        one(torch.randn(4, 3, 6, 6, device=device_of(backend)))  # statistics of BatchNorm differ
        out.append(one)
    return out


@on_every_backend
@pytest.mark.parametrize("buffers", ["copy", "ema", "keep"])
def test_modules_and_their_buffers(backend, buffers):
    target, source = models(backend)
    source(torch.randn(4, 3, 6, 6, device=device_of(backend)))  # its count of batches is 2
    before = {name: x.clone() for name, x in target.state_dict().items()}
    pointers = [x.data_ptr() for x in target.state_dict().values()]
    update(backend, target, source, 0.9, buffers)
    assert [x.data_ptr() for x in target.state_dict().values()] == pointers  # storage is never rebound
    parameters = dict(target.named_parameters())
    for name, after in target.state_dict().items():
        of_source = source.state_dict()[name]
        if name in parameters or (buffers == "ema" and after.is_floating_point()):
            assert_averaged(after, before[name], of_source, 0.9)
        elif buffers == "keep":
            assert torch.equal(after, before[name])
        else:
            assert torch.equal(after, of_source)
    assert all(x.requires_grad and x.grad is None for x in parameters.values())


@on_every_backend
def test_a_copied_buffer_may_be_infinite(backend):
    target, source = models(backend)
    source[1].running_var.fill_(math.inf)
    target[1].running_var.fill_(math.nan)
    update(backend, target, source, 0.9)
    assert torch.equal(target[1].running_var, source[1].running_var)


@on_every_backend
def test_default_buffers_are_copied(backend):
    target, source = models(backend)
    update(backend, target, source, 0.5)
    assert torch.equal(target[1].running_mean, source[1].running_mean)


@on_every_backend
def test_autograd_sees_the_write(backend):
    weight = torch.ones(3, requires_grad=True, device=device_of(backend))
    loss = (weight * weight).sum()
    update(backend, [weight], [torch.zeros(3, device=device_of(backend))], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@on_every_backend
def test_many_updates_are_the_geometric_sum(backend):
    device = device_of(backend)
    target, source = torch.zeros(9, device=device), torch.ones(9, device=device)
    for _ in range(100):
        update(backend, [target], [source], 0.98)
    torch.testing.assert_close(target.cpu(), torch.full((9,), 1 - 0.98**100), rtol=1e-5, atol=0)


REFUSALS = [
    ([torch.ones(3)], [torch.ones(4)], 0.9, ValueError, r"source\[1\]: expected shape \(3,\) as target, got \(4,\)"),
    ([torch.ones(3)], [torch.ones(3)] * 2, 0.9, ValueError, r"source: expected the tensors of target"),
    ([torch.ones(3)], [torch.ones(3, device="meta")], 0.9, ValueError, r"source\[1\]: expected device cpu"),
    ([torch.ones(3)], [torch.ones(3).int()], 0.9, TypeError, r"source\[1\]: expected torch.float32"),
    ([torch.ones(3).int()], [torch.ones(3).long()], 0.9, TypeError, r"source\[1\]: expected torch.int32"),
    ([torch.ones(3)], [[1.0, 1.0, 1.0]], 0.9, TypeError, r"source\[1\]: expected Tensors"),
    ([torch.ones(3).cfloat()], [torch.ones(3).cfloat()], 0.9, TypeError, r"target\[1\]: .* got torch.complex64"),
    ([torch.ones(3)], [torch.ones(3).to(torch.float8_e5m2)], 0.9, TypeError, r"source\[1\]: .* got torch.float8_e5m2"),
    ([torch.ones(1).expand(3)], [torch.ones(3)], 0.9, ValueError, r"target\[1\]: .* got an expanded tensor"),
    ([torch.ones(3)], nn.Linear(1, 1), 0.9, TypeError, r"source: expected the kind of target, got list and Linear"),
    ([torch.ones(3)], [torch.zeros(3)], 1.5, ValueError, r"momentum: expected a number from 0 to 1, got 1.5"),
    ([torch.ones(3)], [torch.zeros(3)], -0.1, ValueError, r"momentum: expected a number from 0 to 1, got -0.1"),
    ([torch.ones(3)], [torch.zeros(3)], math.nan, ValueError, r"momentum: expected a number from 0 to 1, got nan"),
    ([torch.ones(3)], [torch.zeros(3)], "0.9", TypeError, r"momentum: expected a number from 0 to 1, got str"),
    ([torch.ones(3)], [torch.zeros(3)], True, TypeError, r"momentum: expected a number from 0 to 1, got bool"),
]


@pytest.mark.parametrize(("target", "source", "momentum", "error", "message"), REFUSALS)
def test_refusals_change_nothing(target, source, momentum, error, message):
    # A good pair first: it must not have been updated when the bad one is found.
    first = torch.full((2,), 7.0)
    before = [x.clone() for x in target]
    sources = source if isinstance(source, nn.Module) else [torch.zeros(2), *source]
    with pytest.raises(error, match=message):
        ema_update_([first, *target], sources, momentum)
    assert torch.equal(first, torch.full((2,), 7.0))
    for x, old in zip(target, before, strict=True):
        assert torch.equal(x, old)


def test_modules_that_differ_are_refused():
    target = nn.Linear(3, 2)
    before = target.weight.clone()
    for source in (nn.Linear(3, 2, bias=False), nn.Linear(4, 2), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(ValueError, match="source"):
            ema_update_(target, source, 0.5)
    with pytest.raises(ValueError, match="buffers: expected one of copy, ema, keep, got 'mean'"):
        ema_update_(target, nn.Linear(3, 2), 0.5, buffers="mean")
    assert torch.equal(target.weight, before)


@only_compiled
def test_opcheck():
    target, source = ([torch.randn(4, 3), torch.randn(5), torch.arange(3)] for _ in range(2))
    torch.library.opcheck(torch.ops.ssl_fast.ema_update_, (target, source, 0.9))


@only_compiled
def test_the_operator_itself_refuses_shapes_it_would_misread():
    for source in ([torch.ones(4)], [torch.ones(3)] * 2):
        target = [torch.zeros(3)]
        with pytest.raises(ValueError, match="source"):
            torch.ops.ssl_fast.ema_update_(target, source, 0.5)
        assert torch.equal(target[0], torch.zeros(3))
