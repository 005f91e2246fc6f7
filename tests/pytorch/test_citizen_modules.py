"""The modules of the package as nn.Module: copies, checkpoints, the meta device, other dtypes, inference mode."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ssl_fast
from ssl_fast import (
    FlatMomentum,
    InfoNCELoss,
    InstanceDiscriminationLoss,
    LearnableTemperature,
    MemoryBank,
    NegativeQueue,
    NTXentLoss,
    SigLipLoss,
    ema_update_,
)
from ssl_fast.parallel.group import Ring
from tests.helpers.backends import only_compiled
from tests.helpers.loss_cases import CLASSES, arguments_of, every_case, loss_of

SMALL = {"count": 6, "negatives": 7, "dim": 5}


def _encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))


def _loss_with_a_parameter(loss):
    return lambda: loss(temperature=LearnableTemperature(0.2))


MODULES = {
    **{loss.__name__: _loss_with_a_parameter(loss) for loss in CLASSES.values()},
    "DCLWLoss": _loss_with_a_parameter(ssl_fast.DCLWLoss),
    "temperature is a Parameter": lambda: NTXentLoss(nn.Parameter(torch.tensor(0.2))),
    "bias is a Parameter": lambda: SigLipLoss(bias=nn.Parameter(torch.tensor(-5.0))),
    "sampled negatives": lambda: InstanceDiscriminationLoss(negatives=4),
    "LearnableTemperature": lambda: LearnableTemperature(0.3),
    "NegativeQueue": lambda: NegativeQueue(6, 4, seed=1),
    "NegativeQueue of random rows": lambda: NegativeQueue(6, 4),
    "NegativeQueue with ids": lambda: NegativeQueue(6, 4, seed=1, ids=True),
    "MemoryBank": lambda: MemoryBank(6, 4, seed=1),
    "FlatMomentum": lambda: FlatMomentum(_encoder()),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def same_state(module, other):
    assert module.state_dict().keys() == other.state_dict().keys()
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    assert repr(module) == repr(other)


def changed(make):
    """A module whose state is not that of a new one."""
    module = make()
    with torch.no_grad():
        for x in module.state_dict().values():
            x.add_(1)
    return module


@every_module
def test_copies_of_a_module(make):
    module = changed(make)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    for copied in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ):
        same_state(copied, module)
        mine = {x.data_ptr() for x in module.state_dict().values()}
        assert not mine & {x.data_ptr() for x in copied.state_dict().values()}


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_a_copied_loss_keeps_its_group():
    views = torch.randn(2, 6, 5)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for group in (dist.group.WORLD, Ring()):
            module = nn.ModuleDict({"loss": ssl_fast.NTXentLoss(ssl_fast.LearnableTemperature(0.2), group=group)})
            copied = copy.deepcopy(module)["loss"]
            assert copied.group is group
            assert copied.temperature is not module["loss"].temperature
            assert copied(*views).item() == module["loss"](*views).item()
    finally:
        dist.destroy_process_group()


@every_module
def test_a_state_dict_is_all_of_a_module(make):
    module, other = changed(make), make()
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    other.load_state_dict(torch.load(saved, weights_only=True), strict=True)
    same_state(other, module)


@pytest.mark.parametrize("inside", [False, True])
def test_a_queue_of_the_original_moco_is_loaded_transposed(inside):
    """Its buffers: queue (dim, K), whose columns are keys, and queue_ptr (1,)."""
    queue = NegativeQueue(6, 4, seed=0)
    module, prefix = (nn.ModuleDict({"key": queue}), "key.") if inside else (queue, "")
    stored = {f"{prefix}queue": torch.randn(4, 6), f"{prefix}queue_ptr": torch.tensor([2])}
    before = dict(stored)
    with pytest.warns(UserWarning, match=rf"{prefix}queue: \(4, 6\), .* is loaded transposed"):
        module.load_state_dict(stored, strict=True)
    assert torch.equal(queue.queue, stored[f"{prefix}queue"].T)
    assert queue.queue.is_contiguous()
    assert queue.queue_ptr == 2
    assert all(stored[name] is x for name, x in before.items())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("size", "dim", "shape"), [(4, 4, (4, 4)), (6, 4, (6, 4))])
def test_a_queue_that_fits_is_loaded_as_it_is(size, dim, shape):
    queue, stored = NegativeQueue(size, dim), torch.randn(shape)
    queue.load_state_dict({"queue": stored, "queue_ptr": torch.tensor([0])})
    assert torch.equal(queue.queue, stored)


def test_a_queue_of_another_size_is_refused():
    queue = NegativeQueue(6, 4, seed=0)
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        queue.load_state_dict({"queue": torch.randn(4, 5), "queue_ptr": torch.tensor([0])})
    assert torch.equal(queue.queue, NegativeQueue(6, 4, seed=0).queue)


@every_module
def test_a_module_made_on_the_meta_device(make):
    with torch.device("meta"):
        module = make()
    assert {x.device.type for x in module.state_dict().values()} == {"meta"}
    module, made = module.to_empty(device="cpu"), changed(make)
    module.load_state_dict(made.state_dict(), strict=True)
    same_state(module, made)
    assert {x.device.type for x in make().to("meta").state_dict().values()} == {"meta"}


CASTS = {torch.float16: nn.Module.half, torch.bfloat16: nn.Module.bfloat16, torch.float64: nn.Module.double}


@every_module
@pytest.mark.parametrize("dtype", CASTS)
def test_a_module_of_another_dtype(make, dtype):
    for module in (make().to(dtype), CASTS[dtype](make())):
        for (name, x), old in zip(module.state_dict().items(), make().state_dict().values(), strict=True):
            # Pointers, ids and counters stay what they are.
            assert x.dtype == (dtype if old.is_floating_point() else old.dtype), name


@only_compiled
@pytest.mark.parametrize("dtype", CASTS)
def test_cast_modules_still_work(dtype):
    queue, bank = NegativeQueue(6, 4, seed=0, ids=True).to(dtype), MemoryBank(9, 4, seed=0).to(dtype)
    loss, sampled = (
        InfoNCELoss(LearnableTemperature(0.2)).to(dtype),
        InstanceDiscriminationLoss(0.2, negatives=5).to(dtype),
    )
    x = torch.randn(3, 4).to(dtype).requires_grad_()
    queue.enqueue_(x, normalize=True, ids=torch.arange(3))
    total = loss(x, x.flip(0), queue) + sampled(x, torch.arange(3), bank)
    total.backward()
    bank.update_(torch.arange(3), x)
    assert total.isfinite()
    assert x.grad.isfinite().all()
    assert x.grad.dtype == loss.temperature.log_scale.grad.dtype == bank.bank.dtype == dtype


@every_case()
def test_a_loss_on_the_meta_device_has_its_shape(case):
    expected = loss_of(case, "reference", arguments_of(case, **SMALL), reduction="none")
    moved = {name: _to_meta(x) for name, x in arguments_of(case, **SMALL).items()}
    loss = loss_of(case, "reference", moved, reduction="none")
    assert loss.device.type == "meta"
    assert (loss.shape, loss.dtype) == (expected.shape, expected.dtype)


def _to_meta(x):
    if isinstance(x, tuple):
        first = x[0].to("meta")
        return first, first if x[1] is x[0] else x[1].to("meta")
    return x.to("meta") if isinstance(x, torch.Tensor | nn.Module) else x


def test_updates_in_inference_mode():
    """Buffers made outside are written inside, and autograd may use them after."""
    queue, bank, (target, source) = NegativeQueue(6, 4, seed=0), MemoryBank(6, 4, seed=0), (_encoder(), _encoder())
    flat = FlatMomentum(source)
    with torch.inference_mode():
        keys = torch.randn(3, 4)
        queue.enqueue_(keys, normalize=True)
        bank.update_(torch.arange(3), keys)
        ema_update_(target, source, 0.5)
        flat.update_(0.5)
        assert not InfoNCELoss(LearnableTemperature(0.2))(keys, keys, queue).requires_grad
    x = torch.randn(3, 4, requires_grad=True)
    InfoNCELoss(LearnableTemperature(0.2))(x, x.flip(0), queue).backward()
    assert x.grad.isfinite().all()
