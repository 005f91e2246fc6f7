"""ssl_fast.compat.lightly beside the installed lightly: numbers, buffers, errors, and where ours differs."""

import copy
import functools
import inspect
import pickle
import warnings

import lightly.loss
import lightly.loss.ntx_ent_loss
import pytest
import torch
import torch.distributed as dist
from agreement import assert_agree, assert_same_error, with_gradients
from hypothesis import given
from hypothesis import strategies as st
from lightly.loss import dcl_loss as their_dcl
from lightly.models import utils as their_utils
from lightly.models.modules import memory_bank as their_bank
from lightly_pairs import (
    LOSSES,
    agree,
    copy_warning,
    counts,
    dims,
    every_loss,
    pair,
    seeds,
    temperatures,
    theirs,
    views,
    wide,
)

import ssl_fast
from ssl_fast.compat import lightly as ours
from tests.helpers.examples import losses, number, run_example
from tests.helpers.processes import run
from tests.helpers.strategies import LAYOUTS, lay_out

NAMES = {
    "NTXentLoss": theirs.NTXentLoss,
    "DCLLoss": theirs.DCLLoss,
    "DCLWLoss": theirs.DCLWLoss,
    "MemoryBankModule": their_bank.MemoryBankModule,
    "negative_mises_fisher_weights": their_dcl.negative_mises_fisher_weights,
    "update_momentum": their_utils.update_momentum,
}


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    def parameters(call):
        found = inspect.signature(call).parameters.values()
        return [(p.name, p.default) for p in found if p.name != "circular"]

    assert parameters(getattr(ours, name)) == parameters(NAMES[name])
    circular = inspect.signature(getattr(ours, name)).parameters.get("circular")
    assert circular is None or (circular.kind is inspect.Parameter.KEYWORD_ONLY and circular.default is False)


def test_attributes():
    for name, arguments in (("NTXentLoss", (0.2, (8, 3))), ("DCLLoss", (0.2,)), ("DCLWLoss", (0.2, 0.7))):
        mine, other = pair(name, *arguments)
        for key in vars(other).keys() - vars(torch.nn.Module()).keys() - {"weight_fn"}:
            assert getattr(mine, key) == getattr(other, key)
        assert dict(mine.named_children()).keys() == dict(other.named_children()).keys()
    assert isinstance(mine, ours.DCLLoss)
    assert mine.weight_fn.keywords == {"sigma": 0.7}
    (mine, other) = (loss.memory_bank for loss in pair("NTXentLoss", 0.2, (8, 3), True))
    for key in ("size", "gather_distributed", "feature_dim_first"):
        assert getattr(mine, key) == getattr(other, key)
    assert dict(mine.named_buffers()).keys() == dict(other.named_buffers()).keys()
    assert torch.equal(mine.bank, other.bank)
    assert torch.equal(mine.bank_ptr, other.bank_ptr)


@given(counts, dims, temperatures, wide, seeds)
def test_nt_xent(count, dim, temperature, dtype, seed):
    agree(*pair("NTXentLoss", temperature), views(seed, count, dim, dtype), temperature)


def squared_distance(a, b):
    return ((a - b) ** 2).sum(1)


@copy_warning
@given(st.integers(2, 12), dims, temperatures, wide, seeds, st.floats(0.1, 2), st.integers(0, 5))
def test_dcl(count, dim, temperature, dtype, seed, sigma, kind):
    weights = [
        None,
        squared_distance,  # with a gradient
        functools.partial(their_dcl.negative_mises_fisher_weights, sigma=sigma),
        functools.partial(ours.negative_mises_fisher_weights, sigma=sigma),
        ours.negative_mises_fisher_weights,
        lambda a, b: a[:, 0].detach(),  # not symmetric
    ][kind]
    agree(*pair("DCLLoss", temperature, weights), views(seed, count, dim, dtype), temperature)
    agree(*pair("DCLWLoss", temperature, sigma), views(seed, count, dim, dtype), temperature)


@copy_warning
@given(counts, dims, seeds, st.floats(0.1, 2))
def test_negative_mises_fisher_weights(count, dim, seed, sigma):
    z = views(seed, count, dim).requires_grad_()
    weights = ours.negative_mises_fisher_weights(*z, sigma)
    torch.testing.assert_close(weights, their_dcl.negative_mises_fisher_weights(*z, sigma))
    assert not weights.requires_grad


def test_weights_do_not_warn_of_a_copy_as_theirs():
    z = views(0, 4, 3)
    with pytest.warns(UserWarning, match="copy construct"):
        theirs.DCLWLoss()(*z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.DCLWLoss()(*z)


def encoder(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))


@given(st.one_of(st.floats(0, 1), st.sampled_from([0, 1, 0.996])), st.integers(1, 4))
def test_update_momentum(m, steps):
    model, mine = encoder(0), encoder(1)
    model(torch.randn(8, 4))  # its statistics move, the average's must not
    other, places = copy.deepcopy(mine), [p.data_ptr() for p in mine.parameters()]
    for _ in range(steps):
        ours.update_momentum(model, mine, m)
        their_utils.update_momentum(model, other, m=m)
    for got, expected in zip(mine.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    assert places == [p.data_ptr() for p in mine.parameters()]


def test_update_momentum_refuses_before_it_writes():
    model, other = encoder(0), torch.nn.Sequential(torch.nn.Linear(4, 6))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="expected the tensors of target"):
        ours.update_momentum(model, other, 0.9)
    with pytest.raises(ValueError, match="momentum: expected a number from 0 to 1"):
        ours.update_momentum(other, other, 1.5)
    assert all(torch.equal(x, y) for x, y in zip(before.values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, -1e-9])
def test_illegal_temperatures(temperature):
    assert_same_error(lambda: ours.NTXentLoss(temperature), lambda: theirs.NTXentLoss(temperature))
    with pytest.raises(ValueError, match="temperature"):  # theirs is Inf or NaN
        ours.DCLLoss(temperature)(*views(0, 3, 3))


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
def test_gather_without_torch_distributed(name, monkeypatch):
    calls = []
    monkeypatch.setattr(dist, "is_available", lambda: calls.append(1))
    assert_same_error(*(lambda m=m: getattr(m, name)(gather_distributed=True) for m in (ours, theirs)))
    assert len(calls) == 2  # once each


def test_gather_without_a_process_group_is_one_process():
    z = views(0, 4, 3)
    assert_agree(ours.NTXentLoss(gather_distributed=True), theirs.NTXentLoss(gather_distributed=True), *z)


@copy_warning
@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_give_what_theirs_gives_in_float32(name, arguments, dtype):
    # Theirs returns half, and with a bank in half raises.
    mine, other = pair(name, *arguments)
    z = views(0, 6, 5).to(dtype)
    value, gradients = with_gradients(mine, z)
    expected, truths = with_gradients(other, z.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    for got, truth in zip(gradients, truths, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), truth, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@copy_warning
@every_loss
def test_autocast(name, arguments):
    mine, other = pair(name, *arguments)
    z = views(0, 6, 5)
    expected = copy.deepcopy(other)(*z)
    with torch.autocast("cpu", torch.bfloat16):
        value, rounded = mine(z[0], z[1].bfloat16()), other(z[0], z[1].bfloat16())  # of two dtypes too
    assert value.dtype == torch.float32
    assert abs(value - expected) <= abs(rounded - expected) + 5e-2
    torch.testing.assert_close(value, mine(z[0], z[1].bfloat16()))  # autocast changes nothing of ours


def test_a_zero_row_of_float16_is_nan_in_theirs_and_0_in_ours():
    z = views(0, 4, 5).half()
    z[0, 1] = 0
    assert theirs.NTXentLoss(0.1)(*z).isnan()
    value, gradients = with_gradients(ours.NTXentLoss(0.1), z)
    torch.testing.assert_close(value, theirs.NTXentLoss(0.1)(*z.float()))
    assert gradients[0].isfinite().all()


def test_nan_comes_through():
    z = views(0, 4, 5)
    z[1, 2, 3] = float("nan")
    for name, arguments in LOSSES:
        assert getattr(ours, name)(*arguments)(*z).isnan()


def test_dcl_of_one_image_is_an_error_in_ours_and_minus_infinity_in_theirs():
    z = views(0, 1, 5)
    assert theirs.DCLLoss()(*z) == float("-inf")
    with pytest.raises(ValueError, match="one image has no negatives"):
        ours.DCLLoss()(*z)


def test_shapes_that_do_not_fit_raise_value_errors():
    z = views(0, 4, 5)
    for loss in (ours.NTXentLoss(), ours.NTXentLoss(0.5, (8, 5)), ours.DCLLoss()):
        for other in (z[1, :3], z[1, :, :4]):
            with pytest.raises(ValueError, match="expected shape"):
                loss(z[0], other)
    with pytest.raises(ValueError, match="last dimension"):
        ours.NTXentLoss(0.5, (8, 4))(*z)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    z = [lay_out(x, layout) for x in views(0, 6, 5)]
    for name, arguments in LOSSES[:3]:
        mine, other = pair(name, *arguments)
        torch.testing.assert_close(mine(*z), other(*z), rtol=1e-5, atol=1e-6)


@copy_warning
@every_loss
def test_copies(name, arguments):
    loss, z = getattr(ours, name)(*arguments), views(0, 6, 5).requires_grad_()
    loss(*z)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert list(other.state_dict()) == list(loss.state_dict())
        assert torch.equal(other(*z), copy.deepcopy(loss)(*z))


def test_patch():
    before = theirs.NTXentLoss, theirs.DCLWLoss, lightly.loss.ntx_ent_loss.MemoryBankModule
    direct = theirs.DirectCLRLoss
    with ssl_fast.patch("lightly"):
        assert theirs.NTXentLoss is lightly.loss.ntx_ent_loss.NTXentLoss is ours.NTXentLoss
        assert theirs.DCLWLoss is ours.DCLWLoss
        assert their_utils.update_momentum is ours.update_momentum
        assert their_dcl.negative_mises_fisher_weights is ours.negative_mises_fisher_weights
        assert lightly.loss.ntx_ent_loss.MemoryBankModule is ours.MemoryBankModule
        # Their subclasses of what was replaced stay theirs, and run.
        z = views(0, 4, 5).requires_grad_()
        loss = direct(3, memory_bank_size=(8, 3))
        assert loss(*z).isfinite()
        assert loss.memory_bank.bank_ptr.tolist() == [4]
    assert before == (theirs.NTXentLoss, theirs.DCLWLoss, lightly.loss.ntx_ent_loss.MemoryBankModule)


@pytest.mark.slow
@every_loss
def test_compile(name, arguments):
    loss, z = getattr(ours, name)(*arguments), views(0, 6, 5)
    other = copy.deepcopy(loss)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        z = views(seed, 6, 5)
        (value, gradients), (expected, truths) = (with_gradients(f, z) for f in (compiled, loss))
        torch.testing.assert_close([value, *gradients], [expected, *truths])
    assert all(torch.equal(x, y) for x, y in zip(loss.buffers(), other.buffers(), strict=True))


def errors_across(rank, world):
    """By loss the largest relative error beside theirs, of values, gradients and banks, after three steps."""
    warnings.simplefilter("ignore")
    found = {}
    cases = [("NTXentLoss", (0.2,)), ("NTXentLoss", (0.2, (13, 5))), ("NTXentLoss", (0.2, (4, 5)))]
    for name, arguments in [*cases, ("DCLLoss", (0.2,)), ("DCLLoss", (0.2, squared_distance)), ("DCLWLoss", (0.2,))]:
        mine, other = pair(name, *arguments, gather_distributed=True)
        worst = 0.0
        for step in range(3):
            z = views(10 * step + rank, 3, 5)
            (value, gradients), (expected, truths) = (with_gradients(loss, z) for loss in (mine, other))
            banked = len(arguments) == 2 and isinstance(
                arguments[1], tuple
            )  # theirs has memory as it comes for no bank
            buffers = [list(loss.buffers()) if banked else [] for loss in (mine, other)]
            sides = [value, *gradients, *buffers[0]], [expected, *truths, *buffers[1]]
            for got, truth in zip(*sides, strict=True):
                worst = max(worst, ((got - truth).abs().max() / max(truth.abs().max(), 0.1)).item())
        found[f"{name}{arguments}"] = worst
    circular = ours.NTXentLoss(0.2, (4, 5), gather_distributed=True, circular=True)
    z = views(rank, 3, 5).requires_grad_()
    circular(*z)
    found["pointer"] = circular.memory_bank.bank_ptr.item() - 2
    return found


@pytest.mark.long
def test_two_processes():
    for found in run(2, errors_across):
        assert len(found) == 7
        assert max(found.values()) <= 1e-5, found


@pytest.mark.slow
def test_example():
    printed = run_example("lightly_moco", "--steps", "60")
    first, *_, last = losses(printed)
    assert last < first
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed)
