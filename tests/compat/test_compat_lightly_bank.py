"""The memory bank of ssl_fast.compat.lightly beside the installed lightly's: NTXentLoss with one, and the module."""

import functools
import io

import pytest
import torch
from agreement import assert_agree, assert_same_error
from hypothesis import given
from hypothesis import strategies as st
from lightly.models.modules import memory_bank as their_bank
from lightly_pairs import agree, dims, pair, seeds, temperatures, theirs, views, wide
from watch import Watch

from ssl_fast.compat import lightly as ours

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
