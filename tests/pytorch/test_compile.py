"""Whole training steps and modules under torch.compile, torch.export and torch.func.

What one operator or function does under torch.compile is in test_operators.py and test_enqueue.py.
"""

import copy
import inspect

import pytest
import torch
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
    cosine_momentum,
    ema_update_,
)
from ssl_fast.operators import backends
from tests.helpers.backends import only_compiled
from tests.helpers.loss_cases import CLASSES, arguments_of, every_case, gradients_of, leaves, operator_of

pytestmark = only_compiled

SIZES = (6, 9, 13, 6)  # of the batches, where they may change


def rows(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))


def compiled(function, compiler="aot_eager", dynamic=True):
    torch._dynamo.reset()  # what other tests compiled counts towards a function's limit
    torch._dynamo.utils.counters.clear()
    return torch.compile(function, fullgraph=True, backend=compiler, dynamic=dynamic)


@pytest.fixture
def _no_recompiles():
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


# Training steps


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.loss = encoder(), NTXentLoss(LearnableTemperature(0.2))

    def forward(self, first, second):
        return self.loss(self.encoder(first), self.encoder(second))


class MoCo(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.queue, self.loss = encoder(), NegativeQueue(20, 8, seed=1), InfoNCELoss(0.2)
        self.key = copy.deepcopy(self.query).requires_grad_(False)

    def forward(self, first, second):
        query = self.query(first)
        ema_update_(self.key, self.query, 0.9)
        with torch.no_grad():
            key = self.key(second)
        loss = self.loss(query, key, self.queue)
        self.queue.enqueue_(key, normalize=True)
        return loss


def trained(model, step, sizes):
    """The losses and the whole state after every step."""
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], 0.1)
    results = []
    for seed, count in enumerate(sizes):
        loss = step(*rows(seed, 2, count, 8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        results += [loss.detach(), *(x.clone() for x in model.state_dict().values())]
    return results


def agree(compiler, results, expected):
    tolerance = {"rtol": 0, "atol": 0} if compiler == "aot_eager" else {"rtol": 1e-4, "atol": 1e-5}
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, **tolerance)


@pytest.mark.usefixtures("_no_recompiles")
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("model", [SimCLR, MoCo])
def test_a_training_step_is_one_graph(model, dynamic, compiler):
    sizes = SIZES if dynamic else (6, 6, 6)
    eager, fused = model(), model()
    expected = trained(eager, eager, sizes)
    agree(compiler, trained(fused, compiled(fused, compiler, dynamic), sizes), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("_no_recompiles")
def test_the_first_call_of_a_process_may_be_compiled(monkeypatch):
    monkeypatch.setattr(backends, "_chosen", {})
    step = compiled(NTXentLoss())
    for count in (6, 9):
        step(*rows(count, 2, count, 8))


# Modules


def module_of(case, temperature, **sizes):
    """The case's loss as a module, and the arguments of its forward."""
    loss, arguments = CLASSES[operator_of(case)], arguments_of(case, **sizes)
    of_class = {name: x for name, x in arguments.items() if name in inspect.signature(loss).parameters}
    return loss(temperature, **of_class), {name: x for name, x in arguments.items() if name not in of_class}


@pytest.mark.long
@pytest.mark.usefixtures("_no_recompiles")
@every_case()
def test_a_loss_takes_any_batch_size_without_recompiling(case):
    results = []
    for kind in (lambda module: module, compiled):
        module, _ = module_of(case, LearnableTemperature(0.3))
        run = kind(module)
        for count in (30, 41):
            arguments = leaves(module_of(case, 0.3, count=count)[1], gradients_of(case))
            loss = run(**arguments)
            loss.backward()
            results.append([loss.detach(), *(arguments[name].grad for name in gradients_of(case))])
    half = len(results) // 2
    for eager, fused in zip(results[:half], results[half:], strict=True):
        assert all(map(torch.equal, eager, fused))


# Updates in place


class _Sampled(nn.Module):
    """Instance discrimination with sampled negatives: a buffer set in the first step, and the bank."""

    def __init__(self):
        super().__init__()
        self.loss, self.bank = InstanceDiscriminationLoss(0.1, negatives=6), MemoryBank(40, 8, seed=0)

    def forward(self, step, features):
        index = torch.arange(5)
        loss = self.loss(features, index, self.bank)
        self.bank.update_(index, features)
        return loss


class _WithIds(nn.Module):
    """A queue whose keys have ids."""

    def __init__(self):
        super().__init__()
        self.loss, self.queue = InfoNCELoss(), NegativeQueue(20, 8, seed=0, ids=True)

    def forward(self, step, key):
        query = key.flip(0)
        ids = torch.arange(5) + step
        loss = self.loss(query, key, self.queue, exclude=(ids, self.queue.queue_ids))
        self.queue.enqueue_(key, normalize=True, ids=ids)
        return loss


class _Momentum(nn.Module):
    """The update of a key encoder; options: of `ema_update_`, by the step."""

    def __init__(self, momentum=lambda step: 0.9, key_dtype=torch.float32, **options):
        super().__init__()
        self.query, self.momentum, self.options = encoder(), momentum, options
        self.key = copy.deepcopy(self.query).requires_grad_(False).to(key_dtype)

    def forward(self, step, x):
        output = self.query(x)
        options = {name: value(step) for name, value in self.options.items()}
        ema_update_(self.key, self.query, self.momentum(step), **options)
        return output


class _Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = encoder()
        self.key = FlatMomentum(self.query)

    def forward(self, step, x):
        output = self.query(x)
        self.key.update_(0.9)
        return output


def keep(step):
    return "keep"


UPDATES = [
    pytest.param(_Sampled, id="sampled negatives, bank"),
    pytest.param(_WithIds, id="queue with ids"),
    pytest.param(_Momentum, id="momentum"),
    pytest.param(lambda: _Momentum(buffers=lambda step: "ema"), id="buffers averaged"),
    pytest.param(lambda: _Momentum(buffers=keep), id="buffers kept"),
    pytest.param(
        lambda: _Momentum(seed=lambda step: step, buffers=keep, key_dtype=torch.bfloat16), id="random rounding"
    ),
    pytest.param(lambda: _Momentum(lambda step: torch.tensor(0.9) + step / 100, buffers=keep), id="momentum tensor"),
    pytest.param(
        lambda: _Momentum(lambda step: cosine_momentum(torch.tensor(step), 10, 0.9), buffers=keep), id="schedule"
    ),
    pytest.param(_Flat, id="flat"),
]


@pytest.mark.long
@pytest.mark.parametrize("make", UPDATES)
def test_updates_in_place_compile(make):
    results = []
    for run in (lambda module: module, compiled):
        module = make()
        step = run(module)
        for number in range(3):
            torch.manual_seed(number)  # of the sampled negatives
            results.append(
                [step(number, rows(number, 5, 8)).detach(), *(x.clone() for x in module.state_dict().values())]
            )
    for eager, fused in zip(results[:3], results[3:], strict=True):
        assert all(map(torch.equal, eager, fused))


# torch.export


class _Holder(nn.Module):
    """A loss with what it reads beside tensors."""

    def __init__(self, loss, kept):
        super().__init__()
        self.loss, self.kept = loss, kept
        for name, module in kept.items():  # so that their buffers are found
            self.add_module(f"kept_{name}", module if isinstance(module, nn.Module) else None)

    def forward(self, tensors):
        return self.loss(**tensors, **self.kept)


def exportable(case, count=6):
    """(module, tensors) of a case."""
    loss, arguments = module_of(case, LearnableTemperature(0.3), count=count, negatives=7, dim=5)
    kept = {name: x for name, x in arguments.items() if x is None or isinstance(x, nn.Module)}
    return _Holder(loss, kept), {name: x for name, x in arguments.items() if name not in kept}


@every_case()
def test_an_exported_loss_gives_the_same(case):
    module, tensors = exportable(case)
    program = torch.export.export(module, (tensors,))
    assert torch.equal(program.module()(tensors), module(tensors))


def _dynamic_rows(x, count):
    """torch.export's shapes of a case's tensors: the first size is free where it is `count`."""
    if isinstance(x, dict):
        return {name: _dynamic_rows(value, count) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_dynamic_rows(value, count) for value in x)
    return {0: torch.export.Dim.DYNAMIC} if isinstance(x, torch.Tensor) and x.shape[:1] == (count,) else None


@every_case()
def test_an_exported_loss_takes_any_batch_size(case):
    module, tensors = exportable(case)
    shapes = (_dynamic_rows(tensors, 6),)
    program = torch.export.export(module, (tensors,), dynamic_shapes=shapes)
    more = exportable(case, count=11)[1]
    assert torch.equal(program.module()(more), module(more))


# torch.func


@every_case()
def test_functional_call_with_another_temperature(case):
    module, arguments = module_of(case, LearnableTemperature(0.3))
    arguments = leaves(arguments, gradients_of(case))
    log_scale = -torch.tensor(0.7).log()
    got = torch.func.functional_call(module, {"temperature.log_scale": log_scale.requires_grad_()}, (), arguments)
    expected, _ = module_of(case, LearnableTemperature(0.7))
    assert torch.equal(got, expected(**arguments))
    got.backward()
    expected(**arguments).backward()
    assert torch.equal(log_scale.grad, expected.temperature.log_scale.grad)
    assert module.temperature.log_scale.grad is None


def of_first(case, **options):
    """(a case's loss as a function of its first tensor, that tensor)."""
    arguments, name = arguments_of(case, count=6, negatives=7, dim=5), gradients_of(case)[0]
    function = getattr(ssl_fast.functional, operator_of(case))
    return lambda x: function(**{**arguments, name: x}, temperature=0.2, **options), arguments[name]


def looped_gradients(function, batch):
    copies = [x.clone().requires_grad_() for x in batch]
    return torch.stack([torch.autograd.grad(function(x), x)[0] for x in copies])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_case()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_vmap_is_a_loop(case, backend):
    function, x = of_first(case)
    batch = torch.stack([x, 1 - x / 2, x.flip(0)])
    with ssl_fast.backend(backend):
        leaf = batch.clone().requires_grad_()
        losses = torch.func.vmap(function)(leaf)
        torch.testing.assert_close(losses, torch.stack([function(x) for x in batch]), rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        torch.testing.assert_close(gradient, looped_gradients(function, batch), rtol=1e-4, atol=1e-6)


TRANSFORMS = {
    "grad": torch.func.grad,
    "vmap of grad": lambda f: lambda x: torch.func.vmap(torch.func.grad(f))(x[None]),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    "vjp": lambda f: lambda x: torch.func.vjp(f, x),
    "jacrev": torch.func.jacrev,
    "hessian": torch.func.hessian,
}


@every_case()
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_other_transforms_of_the_kernels_are_an_error(case, transform):
    function, x = of_first(case)
    with ssl_fast.backend("cpu"), pytest.raises(RuntimeError, match="functorch transforms"):
        TRANSFORMS[transform](function)(x)


@every_case()
def test_transforms_of_the_reference(case):
    function, x = of_first(case)
    with ssl_fast.backend("reference"):
        gradient = looped_gradients(function, x[None])[0]
        torch.testing.assert_close(torch.func.grad(function)(x), gradient, rtol=1e-4, atol=1e-6)
        _, slope = torch.func.jvp(function, (x,), (torch.ones_like(x),))
        torch.testing.assert_close(slope, gradient.sum(), rtol=1e-4, atol=1e-5)
        hessian = torch.func.hessian(function)(x)
        assert torch.isfinite(hessian).all()


def test_vmap_of_what_writes_is_never_silently_wrong():
    queue = NegativeQueue(6, 4, seed=0)
    before = queue.queue.clone()
    with pytest.raises(RuntimeError, match="atching rule not implemented"):
        torch.func.vmap(queue.enqueue_)(torch.ones(2, 3, 4))
    target = torch.ones(4)
    with pytest.raises(RuntimeError, match="atching rule not implemented"):
        torch.func.vmap(lambda source: ema_update_([target], [source], 0.5))(torch.zeros(3, 4))
    assert torch.equal(queue.queue, before)
    assert torch.equal(target, torch.ones(4))
