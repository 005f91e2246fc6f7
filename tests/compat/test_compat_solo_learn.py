"""ssl_fast.compat.solo_learn beside formulas written here: solo-learn's main branch is on no index.

The formulas are what PEERS.md 1.4 says of its sources at 9187ea3, in plain lines over whole matrices.
"""

import inspect
import math
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn
from agreement import RELATIVE, assert_agree, close, with_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

import ssl_fast
from ssl_fast.compat import solo_learn
from ssl_fast.compat.solo_learn import (
    MomentumUpdater,
    initialize_momentum_params,
    mocov2plus_loss_func,
    mocov3_loss_func,
    simclr_loss_func,
)
from tests.helpers.examples import number, run_example
from tests.helpers.processes import run

temperatures = st.floats(0.1, 2)
seeds = st.integers(0, 1000)
dtypes = st.sampled_from(list(RELATIVE))


def simclr(z, indexes, temperature=0.1, own=slice(None), z_all=None, indexes_all=None):
    """own: the rows' places among all."""
    z_all, indexes_all = (z, indexes) if z_all is None else (z_all, indexes_all)
    exponentials = (normalize(z) @ normalize(z_all).T / temperature).exp()
    same = indexes[:, None] == indexes_all
    itself = torch.eye(len(z_all), dtype=torch.bool)[own]
    positive = (exponentials * (same & ~itself)).sum(1)
    negative = (exponentials * ~same).sum(1)
    return -(positive / (positive + negative)).log().mean()


def mocov2plus(query, key, queue, temperature=0.1):
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue], 1) / temperature
    return cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def mocov3(query, key, temperature=0.2, key_all=None, first=0):
    logits = normalize(query) @ normalize(key if key_all is None else key_all).T / temperature
    return 2 * temperature * cross_entropy(logits, torch.arange(len(query)) + first)


def in_float64(call):
    return lambda *tensors: call(*(x.double() for x in tensors))


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Losses


@given(
    images=st.integers(1, 6),
    views=st.integers(2, 4),
    dim=st.integers(1, 8),
    temperature=temperatures,
    dtype=dtypes,
    seed=seeds,
)
def test_simclr_of_views(images, views, dim, temperature, dtype, seed):
    indexes = torch.arange(images).repeat(views) * 7 - 3
    z = drawn(views * images, dim, dtype=dtype, seed=seed)
    assert_agree(
        lambda z: simclr_loss_func(z, indexes, temperature),
        in_float64(lambda z: simclr(z, indexes, temperature)),
        z,
    )


@given(classes=st.lists(st.integers(0, 3), min_size=1, max_size=6), temperature=temperatures, seed=seeds)
def test_simclr_of_classes(classes, temperature, seed):
    indexes = torch.tensor(classes * 2)
    assert_agree(
        lambda z: simclr_loss_func(z, indexes, temperature),
        lambda z: simclr(z, indexes, temperature),
        drawn(len(indexes), 5, dtype=torch.float64, seed=seed),
    )


@given(
    count=st.integers(1, 10),
    size=st.integers(1, 12),
    dim=st.integers(1, 8),
    temperature=temperatures,
    dtype=dtypes,
    seed=seeds,
)
def test_mocov2plus(count, size, dim, temperature, dtype, seed):
    # Nothing is normalised; query, key and queue all get their gradient where they require one.
    query, key = (drawn(count, dim, dtype=dtype, seed=seed + i) / 2 for i in range(2))
    queue = drawn(dim, size, dtype=dtype, seed=seed + 2) / 2
    assert_agree(
        lambda *x: mocov2plus_loss_func(*x, temperature),
        in_float64(lambda *x: mocov2plus(*x, temperature)),
        query,
        key,
        queue,
    )


@given(count=st.integers(1, 10), dim=st.integers(1, 8), temperature=temperatures, dtype=dtypes, seed=seeds)
def test_mocov3(count, dim, temperature, dtype, seed):
    query, key = (drawn(count, dim, dtype=dtype, seed=seed + i) for i in range(2))
    assert_agree(
        lambda *x: mocov3_loss_func(*x, temperature), in_float64(lambda *x: mocov3(*x, temperature)), query, key
    )


def test_default_temperatures():
    z, indexes, queue = drawn(8, 5), torch.arange(4).repeat(2), normalize(drawn(5, 6), dim=0)
    close(simclr_loss_func(z, indexes), simclr(z, indexes), 1e-5)
    close(mocov2plus_loss_func(z, z + 0.1, queue), mocov2plus(z, z + 0.1, queue), 1e-5)
    close(mocov3_loss_func(z, z + 0.1), mocov3(z, z + 0.1), 1e-5)


@pytest.mark.parametrize(
    ("function", "names", "defaults"),
    [
        (simclr_loss_func, ["z", "indexes", "temperature"], [0.1]),
        (mocov2plus_loss_func, ["query", "key", "queue", "temperature"], [0.1]),
        (mocov3_loss_func, ["query", "key", "temperature"], [0.2]),
        (initialize_momentum_params, ["online_net", "momentum_net"], []),
        (MomentumUpdater, ["base_tau", "final_tau"], [0.996, 1.0]),
        (MomentumUpdater.update, ["self", "online_net", "momentum_net"], []),
        (MomentumUpdater.update_tau, ["self", "cur_step", "max_steps"], []),
    ],
)
def test_signatures(function, names, defaults):
    parameters = inspect.signature(function).parameters.values()
    assert [x.name for x in parameters] == names
    assert [x.default for x in parameters if x.default is not x.empty] == defaults


def test_ours_is_right_where_simclrs_exponentials_overflow():
    # exp(1 / temperature) is Inf in float32 below a temperature of 1 / 88.7.
    z, indexes = drawn(8, 5), torch.arange(4).repeat(2)
    assert simclr(z, indexes, 0.005).isnan()
    value, (gradient,) = with_gradients(lambda z: simclr_loss_func(z, indexes, 0.005), [z])
    exact, (truth,) = with_gradients(in_float64(lambda z: simclr(z, indexes, 0.005)), [z])
    close(value, exact, 1e-5)
    close(gradient, truth, 1e-5)


def test_simclr_without_a_positive_is_infinite_as_there_but_its_gradient_is_not_nan():
    z, indexes = drawn(5, 4), torch.tensor([0, 1, 0, 1, 2])
    value, (gradient,) = with_gradients(lambda z: simclr_loss_func(z, indexes), [z])
    expected, (truth,) = with_gradients(lambda z: simclr(z, indexes), [z])
    assert value == expected == math.inf
    assert truth.isnan().any()
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_zero_rows(dtype):
    z, indexes = drawn(8, 5, dtype=dtype), torch.arange(4).repeat(2)
    z[3] = 0
    for loss in (lambda z: simclr_loss_func(z, indexes), lambda z: mocov3_loss_func(z, z.detach() + 1)):
        value, (gradient,) = with_gradients(loss, [z])
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_ours_is_right_where_a_zero_row_of_float16_is_nan():
    z, indexes = drawn(8, 5, dtype=torch.float16), torch.arange(4).repeat(2)
    z[3] = 0
    assert simclr(z, indexes).isnan()  # normalize's eps is 0 in float16
    close(simclr_loss_func(z, indexes), simclr(z.double(), indexes), 1e-3)


def test_nan_in_gives_nan_out():
    z, indexes = drawn(6, 4), torch.tensor([0, 1, 2, 0, 1, 3])  # rows 2 and 5 have no positive
    for row in (0, 2):
        bad = z.clone()
        bad[row, 1] = math.nan
        assert simclr_loss_func(bad, indexes).isnan()
        assert mocov2plus_loss_func(bad, z, z.T).isnan()
        assert mocov2plus_loss_func(z, z, bad.T).isnan()
        assert mocov3_loss_func(z, bad).isnan()


def test_strided_inputs():
    stored = drawn(12, 10, dtype=torch.float64)
    z, indexes = stored[::2, 1::2], torch.arange(12)[::4].repeat(2).flip(0)
    assert not z.is_contiguous()
    assert_agree(lambda z: simclr_loss_func(z, indexes), lambda z: simclr(z, indexes), z)
    assert_agree(mocov2plus_loss_func, mocov2plus, z / 3, z.flip(0) / 3, stored[:, ::2].T / 3)
    assert_agree(mocov3_loss_func, mocov3, z, z.flip(1))
    strided = torch.arange(12)[::2]
    assert simclr_loss_func(stored[:6].repeat(2, 1), strided.repeat(2)[:12]).isfinite()


def test_under_autocast_the_loss_stays_in_float32():
    z, indexes, queue = drawn(8, 5), torch.arange(4).repeat(2), drawn(5, 6)
    calls = (
        lambda: simclr_loss_func(z, indexes),
        lambda: mocov2plus_loss_func(z, z + 1, queue),
        lambda: mocov3_loss_func(z, z + 1),
    )
    for call in calls:
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            got = call()
        assert got.dtype == torch.float32
        close(got, expected, 1e-5)


def test_refused_inputs():
    z = drawn(4, 3)
    with pytest.raises(ValueError, match="labels"):
        simclr_loss_func(z, torch.arange(3))
    with pytest.raises(TypeError, match="labels: expected integers"):
        simclr_loss_func(z, torch.rand(4))
    with pytest.raises(ValueError, match="negatives: expected last dimension 3"):
        mocov2plus_loss_func(z, z, drawn(4, 5))
    with pytest.raises(ValueError, match="positive: expected shape"):
        mocov3_loss_func(z, drawn(5, 3))


@pytest.mark.slow
def test_torch_compile():
    indexes = torch.arange(4).repeat(2)
    for loss, tensors in (
        (lambda z: simclr_loss_func(z, indexes), (drawn(8, 5),)),
        (mocov2plus_loss_func, (drawn(4, 5), drawn(4, 5, seed=1), drawn(5, 6))),
        (mocov3_loss_func, (drawn(4, 5), drawn(4, 5, seed=1))),
    ):
        assert_agree(torch.compile(loss, fullgraph=True, backend="aot_eager"), loss, *tensors)


# Patching, processes, the example


def stand_in(name):
    """Source of a function or class of that name with our arguments: another one is not replaced."""
    arguments = ", ".join(inspect.signature(getattr(solo_learn, name)).parameters)
    if not inspect.isclass(getattr(solo_learn, name)):
        return f"def {name}({arguments}): pass"
    return f"class {name}:\n    def __init__(self, {arguments}): pass"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A package of solo-learn's shape: the modules that define the names, and one that takes them."""
    for name, names in solo_learn.REPLACES.items():
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(stand_in, names)))
    for folder in ("solo", "solo/losses", "solo/utils", "solo/methods"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "solo/losses/__init__.py").write_text("from .simclr import simclr_loss_func")
    (tmp_path / "solo/methods/base.py").write_text(
        "from solo.losses.simclr import simclr_loss_func\nfrom solo.utils.momentum import MomentumUpdater"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "solo"]:
        del sys.modules[name]


def test_patch_swaps_and_restores(checkout):
    import solo.losses
    import solo.methods.base as method

    before = method.simclr_loss_func, method.MomentumUpdater
    with ssl_fast.patch("solo-learn"):
        assert method.simclr_loss_func is solo.losses.simclr_loss_func is simclr_loss_func
        assert method.MomentumUpdater is MomentumUpdater
        for name, names in solo_learn.REPLACES.items():
            assert all(getattr(sys.modules[name], x) is getattr(solo_learn, x) for x in names)
    assert (method.simclr_loss_func, method.MomentumUpdater) == before
    assert solo.losses.simclr_loss_func is before[0]


def test_without_a_checkout_patch_says_what_it_needs():
    with pytest.raises(ImportError, match=r"solo.losses.simclr cannot be imported .* its checkout on sys.path"):
        ssl_fast.patch("solo_learn")


def in_processes(rank, world):
    """(mine, the formula's) values and gradients in this rank; the formula gathers as solo-learn does."""
    z, indexes = drawn(6, 4, dtype=torch.float64, seed=rank), torch.tensor([rank, 5, 6, rank, 5, 6])
    gathered = [torch.empty_like(indexes) for _ in range(world)]
    dist.all_gather(gathered, indexes)
    own = slice(6 * rank, 6 * rank + 6)

    def simclr_across(z):
        z_all = torch.cat(torch.distributed.nn.functional.all_gather(z))  # backward: the ranks' sum
        return simclr(z, indexes, 0.2, own, z_all, torch.cat(gathered))

    def mocov3_across(query, key):
        keys = [torch.empty_like(key) for _ in range(world)]
        dist.all_gather(keys, key.detach())
        return mocov3(query, key, 0.2, torch.cat(keys), 6 * rank)

    found = []
    for mine, formula, tensors in (
        (lambda z: simclr_loss_func(z, indexes, 0.2), simclr_across, [z]),
        (mocov3_loss_func, mocov3_across, [z, z.flip(0)]),
    ):
        for call in (mine, formula):
            value, gradients = with_gradients(call, tensors)
            found.append([value.tolist(), *(x.tolist() if x is not None else None for x in gradients)])
    return found


@pytest.mark.long
def test_across_two_processes():
    for simclr_mine, simclr_expected, mocov3_mine, mocov3_expected in run(2, in_processes):
        assert mocov3_mine.pop() is mocov3_expected.pop() is None  # keys of other ranks get no gradient, nor do own
        for got, truth in zip(simclr_mine + mocov3_mine, simclr_expected + mocov3_expected, strict=True):
            close(torch.tensor(got), torch.tensor(truth), 1e-6)


@pytest.mark.slow
def test_the_example():
    printed = run_example("solo_learn_mocov2plus", "--steps", "60")
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed)
