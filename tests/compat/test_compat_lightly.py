"""ssl_fast.compat.lightly beside the installed lightly: numbers, buffers, errors, and where ours differs."""

import copy
import functools
import inspect
import io
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

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
from watch import Watch

import ssl_fast
from ssl_fast.compat import lightly as ours
from tests.helpers.processes import run
from tests.helpers.strategies import LAYOUTS, lay_out

ROOT = Path(__file__).parents[2]
theirs = lightly.loss
NAMES = {
    "NTXentLoss": theirs.NTXentLoss,
    "DCLLoss": theirs.DCLLoss,
    "DCLWLoss": theirs.DCLWLoss,
    "MemoryBankModule": their_bank.MemoryBankModule,
    "negative_mises_fisher_weights": their_dcl.negative_mises_fisher_weights,
    "update_momentum": their_utils.update_momentum,
}
counts, dims, seeds = st.integers(1, 12), st.integers(1, 8), st.integers(0, 2**31 - 1)
temperatures = st.one_of(st.floats(0.05, 1), st.floats(-1, -0.05), st.sampled_from([30.0, 5]))
wide = st.sampled_from([torch.float32, torch.float64])
copy_warning = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # their weights


def views(seed, count, dim, dtype=torch.float32):
    """(2, N, D) of lengths 1/2 to 2."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2, count, dim, generator=generator, dtype=dtype), dim=2)
    return directions * (0.5 + 1.5 * torch.rand(2, count, 1, generator=generator, dtype=dtype))


def agree(our_loss, their_loss, z, temperature):
    """As assert_agree; a gradient that is a difference of larger ones, as all are for D = 1, is bound by those."""
    relative = {torch.float64: 1e-11, torch.float32: 1e-5}[z.dtype]
    (value, gradients), (expected, expected_gradients) = (with_gradients(loss, z) for loss in (our_loss, their_loss))
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape == ()
    for got, truth in zip([value, *gradients], [expected, *expected_gradients], strict=True):
        scale = max(truth.abs().max().item(), 0.1 / abs(temperature))
        torch.testing.assert_close(got, truth, rtol=0, atol=relative * scale)


def pair(name, *arguments, **options):
    """Ours and theirs of one seed: a bank of the same rows."""
    made = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        made.append(getattr(module, name)(*arguments, **options))
    return made


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


batches = st.lists(st.tuples(st.integers(1, 15), st.booleans(), seeds), min_size=1, max_size=6)


@given(st.integers(1, 12), dims, temperatures, wide, batches)
def test_nt_xent_with_a_bank(size, dim, temperature, dtype, steps):
    mine, other = (loss.to(dtype) for loss in pair("NTXentLoss", temperature, memory_bank_size=(size, dim)))
    for count, trained, seed in steps:
        z = views(seed, count, dim, dtype)
        if trained:
            agree(mine, other, z, temperature)
        else:  # the bank stays
            torch.testing.assert_close(mine(*z), other(*z), rtol=1e-5, atol=1e-6 / abs(temperature))
        torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)
        assert torch.equal(mine.memory_bank.bank_ptr, other.memory_bank.bank_ptr)


def test_nt_xent_with_a_bank_whose_keys_have_no_gradient():
    mine, other = pair("NTXentLoss", 0.1, memory_bank_size=(8, 5))
    z0, z1 = views(0, 6, 5)
    assert_agree(lambda x: mine(x, z1), lambda x: other(x, z1), z0)
    assert torch.equal(mine.memory_bank.bank_ptr, other.memory_bank.bank_ptr)
    # Only the query's gradient decides whether the bank is written.
    mine(z0, z1.requires_grad_())
    other(z0, z1)
    torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)


@given(st.integers(1, 9), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_circular_bank_drops_nothing(size, sizes):
    loss = ours.NTXentLoss(0.2, (size, 4), circular=True)
    bank, place = loss.memory_bank.bank.clone(), 0
    for number, count in enumerate(sizes):
        z = views(number, count, 4)
        loss(z[0].requires_grad_(), z[1])
        for row in torch.nn.functional.normalize(z[1]):
            bank[place] = row
            place = (place + 1) % size
        torch.testing.assert_close(loss.memory_bank.bank, bank)
        assert loss.memory_bank.bank_ptr.tolist() == [place]


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


@pytest.mark.parametrize("options", [{}, {"feature_dim_first": False}])
def test_memory_bank_module(options):
    modules = []
    for module in (ours, their_bank):
        torch.manual_seed(1)
        modules.append(module.MemoryBankModule((5, 3), **options))
    for step, count in enumerate([2, 2, 2, 7, 5, 1]):
        output, update = views(step, count, 3)[0], step != 1
        (same, bank), (_, expected) = (module(output, None, update) for module in modules)
        assert same is output
        assert torch.equal(bank, expected)  # as it was before the write, and not moved by it
        assert torch.equal(modules[0].bank, modules[1].bank)  # the output as it is
        assert torch.equal(modules[0].bank_ptr, modules[1].bank_ptr)
    assert ours.MemoryBankModule(0)(output)[1] is None
    assert ours.MemoryBankModule((0, 3))(output, update=True)[1] is None


@pytest.mark.parametrize("size", [5, -1, (4, -2), (4,), (4, 2, 2), ()])
def test_illegal_bank_sizes(size):
    for module in ((ours.NTXentLoss, theirs.NTXentLoss), (ours.MemoryBankModule, their_bank.MemoryBankModule)):
        option = "memory_bank_size" if module[0] is ours.NTXentLoss else "size"
        assert_same_error(*(functools.partial(call, **{option: size}) for call in module))


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


def test_resuming_keeps_the_queue_that_lightly_loses():
    z = views(0, 3, 4).requires_grad_()
    for module, kept in ((theirs, False), (ours, True)):
        loss, resumed = (module.NTXentLoss(0.1, (8, 4)) for _ in range(2))
        loss(*z)
        file = io.BytesIO()
        torch.save(loss.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file))
        assert torch.equal(loss.memory_bank.bank, resumed.memory_bank.bank) is kept
        assert torch.equal(loss.memory_bank.bank_ptr, resumed.memory_bank.bank_ptr) is kept


def test_state_dicts():
    assert ours.NTXentLoss().state_dict().keys() == theirs.NTXentLoss().state_dict().keys() == set()
    loss = ours.NTXentLoss(0.1, (8, 4))
    assert list(loss.state_dict()) == ["memory_bank.bank", "memory_bank.bank_ptr"]
    # One of lightly's has neither: within a model too, the bank stays as it is.
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2), "loss": loss})
    other = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2), "loss": theirs.NTXentLoss(0.1, (8, 4))})
    bank, state = loss.memory_bank.bank.clone(), other.state_dict()
    for assign in (False, True):
        model.load_state_dict(state, strict=True, assign=assign)
        assert torch.equal(loss.memory_bank.bank, bank)
    assert state.keys() == {"head.weight", "head.bias"}
    assert torch.equal(model["head"].weight, other["head"].weight)
    # A file with one of the two is damaged.
    with pytest.raises(RuntimeError, match="bank_ptr"):
        loss.load_state_dict({"memory_bank.bank": bank})


LOSSES = [("NTXentLoss", (0.1,)), ("NTXentLoss", (0.1, (9, 5))), ("DCLLoss", (0.1,)), ("DCLWLoss", (0.1,))]
every_loss = pytest.mark.parametrize(("name", "arguments"), LOSSES)


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


@pytest.mark.parametrize("circular", [False, True])
def test_the_bank_is_neither_copied_nor_its_pointer_read(circular):
    z, size = views(0, 4, 5).requires_grad_(), 500
    watched = []
    for loss in (ours.NTXentLoss(0.1, (size, 5), circular=circular), theirs.NTXentLoss(0.1, (size, 5))):
        with Watch() as watch:
            loss(*z).backward()
        watched.append(watch)
    assert watched[0].most < size < size * 5 <= watched[1].most
    assert [any("_local_scalar_dense" in name for name in watch.names) for watch in watched] == [False, True]


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
    command = [sys.executable, "examples/lightly_moco.py", "--steps", "60"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    before, after = (float(x) for x in re.findall(r"kNN accuracy \w+ training +(\S+)", answer.stdout))
    lost = [float(x) for x in re.findall(r"loss (\S+)", answer.stdout)]
    assert lost[-1] < lost[0]
    assert after > before
