"""Objects changed after they were made, classes derived from them, gradients switched off: as theirs, or refused."""

import pickle

import lightly.loss
import open_clip.loss
import pytest
import torch
from agreement import assert_agree, close
from lightly.models.modules import memory_bank
from pytorch_metric_learning import losses as metric_losses
from sentence_transformers.sentence_transformer import losses as ranking
from torch import nn

import ssl_fast
from ssl_fast.compat import lightly as our_lightly
from ssl_fast.compat import open_clip as our_open_clip
from ssl_fast.compat import own_path
from ssl_fast.compat import pytorch_metric_learning as our_metric
from ssl_fast.compat import sentence_transformers as our_ranking

LABELS = torch.arange(12) % 3


@pytest.fixture(autouse=True)
def _said_anew():
    own_path.say_own_path.cache_clear()


def alike(make, *tensors, relative=None, modules):
    """make(module) gives a call; both modules' calls agree."""
    ours, theirs = (make(module) for module in modules)
    assert_agree(ours, theirs, *tensors, relative=relative)


# lightly


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_bank_is_not_written_where_gradients_are_off(off):
    z = torch.randn(2, 8, 6, requires_grad=True)
    for module in (lightly.loss, our_lightly):
        loss = module.NTXentLoss(memory_bank_size=(32, 6))
        with off():
            loss(*z)
        assert int(loss.memory_bank.bank_ptr) == 0
        loss(*z)
        assert int(loss.memory_bank.bank_ptr) == 8


def shorter(module):
    class Bank(module.MemoryBankModule):
        def forward(self, output, labels=None, update=False):
            output, negatives = super().forward(output, labels, update)
            return output, negatives[:, :4]

    return Bank((32, 6))


def patched_forward(module):
    bank = module.MemoryBankModule((32, 6))
    bank.forward = lambda output, labels=None, update=False: (output, bank.bank.T[:, 3:9])
    return bank


BANKS = {
    "a class of its own": shorter,
    "a forward of its own": patched_forward,
    "rows first": lambda module: module.MemoryBankModule((6, 6), feature_dim_first=False),
    "lightly's": lambda module: memory_bank.MemoryBankModule((32, 6)),
    "none": lambda module: module.MemoryBankModule(0),
}


@pytest.mark.parametrize("kind", list(BANKS))
def test_another_bank_is_asked(kind):
    calls = []
    for losses_of, banks_of in ((our_lightly, our_lightly), (lightly.loss, memory_bank)):
        torch.manual_seed(3)
        loss = losses_of.NTXentLoss(0.3)
        loss.memory_bank = BANKS[kind](banks_of)
        calls.append(loss)
    ours, theirs = calls
    for _ in range(3):
        assert_agree(ours, theirs, *torch.randn(2, 5, 6))
    close(ours.memory_bank.bank, theirs.memory_bank.bank, 1e-6)


def test_a_dcl_with_a_loss_of_its_own_is_refused():
    with pytest.raises(TypeError, match=r"Mine\._loss: no such method is called here"):

        class Mine(our_lightly.DCLLoss):
            def _loss(self, *rows):
                return rows[0].sum()


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss"])
@pytest.mark.parametrize("number", [torch.tensor([0.3]), torch.tensor([[2]]), torch.tensor(1)])
def test_temperatures_of_one_element(name, number):
    def make(module):
        loss = getattr(module, name)()
        loss.temperature = number
        return loss

    alike(make, *torch.randn(2, 6, 5), modules=(our_lightly, lightly.loss))


def test_a_checkpoint_of_another_bank_keeps_this_one():
    saved = our_lightly.NTXentLoss(memory_bank_size=(16, 6)).state_dict()
    for size in ((32, 6), 0):
        loss = our_lightly.NTXentLoss(memory_bank_size=size)
        before = loss.memory_bank.bank.clone()
        with pytest.warns(UserWarning, match=r"memory_bank.bank: of shape \(16, 6\), is not loaded"):
            loss.load_state_dict(saved)
        assert torch.equal(loss.memory_bank.bank, before)


def test_a_pickle_of_theirs_opens_while_patched():
    theirs = lightly.loss.NTXentLoss(memory_bank_size=(32, 6))
    saved = pickle.dumps(theirs)
    z = torch.randn(2, 8, 6, requires_grad=True)
    with ssl_fast.patch("lightly"):
        loss = pickle.loads(saved)
        assert type(loss) is our_lightly.NTXentLoss
        close(loss(*z), theirs(*z), 1e-5)
        assert int(loss.memory_bank.bank_ptr) == 8


# pytorch-metric-learning


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
@pytest.mark.parametrize("number", [1e9, 1e-9])
def test_a_temperature_out_of_range_runs_the_librarys_code(name, number):
    def make(module):
        loss = getattr(module, name)()
        loss.temperature = torch.tensor(number)
        return lambda z: loss(z, LABELS)

    with pytest.warns(UserWarning, match="a temperature of this size has no fused form"):
        alike(make, torch.randn(12, 6), modules=(our_metric, metric_losses))


def moved(mat):
    return mat - 0.2 * torch.ones_like(mat).tril()


def derived(module, name):
    base, method = getattr(module, name), {"NTXentLoss": "pair_based_loss", "SupConLoss": "mat_based_loss"}[name]

    def changed(self, mat, indices_tuple):
        return getattr(base, method)(self, moved(mat), indices_tuple)

    return type(name, (base,), {method: changed, "__module__": __name__})()


def set_on_the_object(module, name):
    loss = getattr(module, name)()
    before = loss.loss_method
    loss.loss_method = lambda mat, indices_tuple: before(moved(mat), indices_tuple)
    return loss


def distance_of_its_own(module, name):
    loss = getattr(module, name)()
    before = loss.distance.compute_mat
    loss.distance.compute_mat = lambda *rows: moved(before(*rows))
    return loss


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
@pytest.mark.parametrize("kind", [derived, set_on_the_object, distance_of_its_own])
def test_what_a_user_changed_is_heard(name, kind):
    def make(module):
        loss = kind(module, name)
        return lambda z: loss(z, LABELS)

    with pytest.warns(UserWarning, match="has no fused form"):
        alike(make, torch.randn(12, 6), modules=(our_metric, metric_losses))


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_a_queue_of_ones_own_may_be_written_before_the_backward_pass(name):
    def make(module):
        loss, queue = getattr(module, name)(), torch.randn(12, 6, generator=torch.Generator().manual_seed(5))

        def call(z):
            value = loss(z, LABELS, ref_emb=queue, ref_labels=LABELS.flip(0))
            queue[:3] = z[:3].detach()
            return value

        return call

    alike(make, torch.randn(12, 6), modules=(our_metric, metric_losses))


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])
def test_their_memory_around_our_loss_accumulates_gradients(name):
    def make(module):
        memory = metric_losses.CrossBatchMemory(getattr(module, name)(), 6, 64)
        return lambda z, other: memory(z, LABELS) + memory(other, LABELS)

    with pytest.warns(UserWarning, match="an indices_tuple or a miner has no fused form"):
        alike(make, torch.randn(12, 6), torch.randn(12, 6), modules=(our_metric, metric_losses))


# open_clip


@pytest.mark.parametrize("bias", [float("nan"), float("inf")])
def test_a_bias_that_is_not_finite_is_no_finite_loss(bias):
    a, b, scale = (x.requires_grad_() for x in (torch.randn(6, 5), torch.randn(6, 5), torch.tensor(5.0)))
    loss = our_open_clip.ClipLoss()(a, b, scale, torch.tensor(bias))
    loss.backward()
    assert loss.isnan()
    assert all(x.grad.isnan().all() for x in (a, b, scale))
    with pytest.raises(ValueError, match="nan"):
        our_open_clip.ClipLoss()(a, b, 5.0, bias)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_logits_of_the_objects_own_are_heard(name):
    def make(module):
        loss = getattr(module, name)()
        before = loss.get_logits

        def get_logits(*arguments, **options):
            found = before(*arguments, **options)
            return tuple(0.5 * x for x in found) if isinstance(found, tuple) else 0.5 * found

        loss.get_logits = get_logits
        return lambda a, b: loss(a, b, 5.0, -1.0)

    with pytest.warns(UserWarning, match="has no fused form"):
        alike(make, *torch.randn(2, 6, 5), modules=(our_open_clip, open_clip.loss))


def test_an_integer_scale():
    def make(module):
        return lambda a, b: module.ClipLoss()(a, b, torch.tensor(3), torch.tensor(1))

    alike(make, *torch.randn(2, 6, 5), modules=(our_open_clip, open_clip.loss))


# sentence-transformers


class Model(nn.Module):
    def __getitem__(self, index):
        return self


def of_rows(loss):
    return lambda *rows: loss.compute_loss_from_embeddings(list(rows), None)


@pytest.mark.parametrize("mode", ["in_batch_negatives", "hard_negatives", "all_negatives"])
@pytest.mark.parametrize("field", ["scale", "hardness_strength"])
def test_a_learnt_scale_beside_hardness_weights(mode, field):
    rows = list(torch.randn(3, 8, 6))

    def make(module):
        def call(number, *rows):
            loss = module.MultipleNegativesRankingLoss(Model(), hardness_mode=mode, hardness_strength=9.0, scale=2.0)
            setattr(loss, field, number)
            return of_rows(loss)(*rows)

        return call

    with pytest.warns(UserWarning, match="a tensor for scale or hardness_strength, with hardness weights"):
        alike(make, torch.tensor(2.0), *rows, modules=(our_ranking, ranking))


@pytest.mark.parametrize("number", [torch.tensor([3.0]), torch.tensor(3)])
@pytest.mark.parametrize("columns", [2, 3])
def test_scales_of_one_element(number, columns):
    def make(module):
        loss = module.MultipleNegativesRankingLoss(Model())
        loss.scale = number
        return of_rows(loss)

    alike(make, *torch.randn(columns, 8, 6), modules=(our_ranking, ranking))


@pytest.mark.parametrize(
    ("directions", "mode"),
    [(("doc_to_query",), "joint"), (("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "per_direction")],
)
def test_directions_that_the_constructor_refuses(directions, mode):
    def make(module):
        loss = module.MultipleNegativesRankingLoss(Model())
        loss.directions, loss.partition_mode = directions, mode
        return of_rows(loss)

    with pytest.warns(UserWarning, match="a choice of directions that its constructor refuses"):
        alike(make, *torch.randn(3, 8, 6), modules=(our_ranking, ranking))
