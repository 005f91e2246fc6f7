"""The package among PyTorch's own features: mixed precision, workers, threads, what autograd promises.

What else autograd promises of every loss (twice backward, one side only, no_grad) is in test_losses.py.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import nn

import ssl_fast
from ssl_fast import InfoNCELoss, LearnableTemperature, MemoryBank, NegativeQueue, NTXentLoss, ema_update_
from tests.helpers.backends import device_of, only_compiled
from tests.helpers.loss_cases import CASES, arguments_of, every_case, gradients_of, leaves, loss_of, on_every_backend

SMALL = {"count": 6, "negatives": 7, "dim": 5}
HALF_TYPES = [torch.bfloat16, torch.float16]


def gradients(loss, arguments, case, **options):
    return torch.autograd.grad(loss, [arguments[name] for name in gradients_of(case)], **options)


# Mixed precision


class _Step(nn.Module):
    """SimCLR and MoCo in one loss of two linear encoders' outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.queue = nn.Linear(12, 8, bias=False), NegativeQueue(16, 8, seed=0)
        self.losses = nn.ModuleList([NTXentLoss(LearnableTemperature(0.2)), InfoNCELoss(0.2)])

    def forward(self, first, second):
        first, second = self.encoder(first), self.encoder(second)
        return self.losses[0](first, second) + self.losses[1](first, second.detach(), self.queue)


@on_every_backend
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_embeddings_of_an_autocast_encoder(backend, dtype):
    results, device = [], device_of(backend)
    data = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1)).to(device)
    for enabled in (False, True):
        step = _Step().to(device)
        with ssl_fast.backend(backend), torch.autocast(device, dtype, enabled=enabled):
            loss = step(*data)
        loss.backward()
        assert loss.dtype == torch.float32
        results.append([loss.detach(), *(x.grad for x in step.parameters())])
    for single, mixed in zip(*results, strict=True):
        assert mixed.dtype == torch.float32  # of the parameters
        torch.testing.assert_close(mixed, single, rtol=0.05, atol=0.05)


@on_every_backend
@every_case()
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_embeddings_under_autocast(case, backend, dtype):
    arguments = leaves(arguments_of(case, backend, dtype=dtype, **SMALL), gradients_of(case))
    with torch.autocast(device_of(backend), dtype):
        loss = loss_of(case, backend, arguments)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(case, backend, arguments))
    assert [x.dtype for x in gradients(loss, arguments, case)] == [dtype] * len(gradients_of(case))


def scaled_step(scale, data):
    """(the scale after a step of float16 with the loss scaled, the parameters before and after it)."""
    step = _Step()
    optimizer = torch.optim.SGD(step.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = [x.detach().clone() for x in step.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = step.losses[0](*map(step.encoder, data))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale(), before, list(step.parameters())


@only_compiled
@pytest.mark.parametrize("scale", [2.0**10, 2.0**16])
def test_a_scaled_step_is_the_step_or_none(scale):
    """At the larger scale only the embeddings' gradient is beyond float16, those of the parameters are not."""
    data = torch.randn(2, 6, 12) / 50
    (_, _, plain), (now, before, scaled) = scaled_step(1.0, data), scaled_step(scale, data)
    for x, same, old in zip(scaled, plain, before, strict=True):
        torch.testing.assert_close(x, same if now == scale else old, rtol=1e-2, atol=1e-2)


@on_every_backend
@every_case()
def test_an_overflowing_gradient_is_not_finite(case, backend):
    arguments = leaves(arguments_of(case, backend, dtype=torch.float16, **SMALL), gradients_of(case))
    for gradient in gradients(loss_of(case, backend, arguments) * 2.0**30, arguments, case):
        assert not gradient.isfinite().all()


# What autograd promises


@on_every_backend
@every_case()
def test_a_changed_input_is_never_a_wrong_gradient(case, backend):
    """Either autograd says that it was changed, or the gradient is what it would have been."""
    names = gradients_of(case)
    for place in range(len(_tensors(arguments_of(case, backend, **SMALL)))):
        arguments = leaves(arguments_of(case, backend, **SMALL), names)
        loss = loss_of(case, backend, arguments)
        expected = gradients(loss, arguments, case, retain_graph=True)
        owner, x = _tensors(arguments)[place]
        with torch.no_grad():
            x.add_(1)
        if backend != "reference" and owner in names:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                gradients(loss, arguments, case)
            continue
        try:
            got = gradients(loss, arguments, case)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert all(map(torch.equal, got, expected))


def _tensors(arguments):
    """(argument, tensor) of all tensors in a case's arguments."""
    found = []
    for name, x in arguments.items():
        parts = x if isinstance(x, tuple) else [x.queue] if isinstance(x, NegativeQueue) else [x]
        found += [(name, part) for part in parts if isinstance(part, torch.Tensor)]
    return found


@on_every_backend
@pytest.mark.parametrize("case", ["nt_xent", "info_nce queue", "supcon", "clip", "siglip"])
def test_a_changed_temperature_is_never_a_wrong_gradient(case, backend):
    """What the operators keep is its inverse, of which nobody else has the memory."""
    arguments, temperature = leaves(arguments_of(case, backend, **SMALL), gradients_of(case)), torch.tensor(0.2)
    temperature.requires_grad_()
    loss = loss_of(case, backend, arguments, temperature)
    expected = torch.autograd.grad(loss, temperature, retain_graph=True)
    with torch.no_grad():
        temperature.mul_(2)
    assert torch.autograd.grad(loss, temperature) == expected


@on_every_backend
@pytest.mark.parametrize("case", ["clip", "siglip"])
def test_a_changed_logit_scale_is_noticed(case, backend):
    """It is kept as it is."""
    arguments, scale = leaves(arguments_of(case, backend, **SMALL), gradients_of(case)), torch.tensor(5.0)
    scale.requires_grad_()
    loss = loss_of(case, backend, arguments, logit_scale=scale)
    expected = torch.autograd.grad(loss, scale, retain_graph=True)
    with torch.no_grad():
        scale.mul_(2)
    if backend == "reference":
        assert torch.autograd.grad(loss, scale) == expected
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, scale)


@every_case(but=("dcl weighted",))  # its weights count as constants
def test_second_derivatives_of_the_reference(case):
    arguments = arguments_of(case, count=4, negatives=3, dim=3, dtype=torch.float64)
    names = gradients_of(case)

    def loss(*tensors):
        return loss_of(case, "reference", {**arguments, **dict(zip(names, tensors, strict=True))}, 0.4)

    inputs = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


@pytest.fixture
def _deterministic():
    torch.use_deterministic_algorithms(True)  # which also fills uninitialised memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


def bits_of(case, backend="cpu"):
    arguments = leaves(arguments_of(case, backend), gradients_of(case))
    loss, stats = loss_of(case, backend, arguments, return_stats=True)
    return [loss.detach(), *stats, *gradients(loss, arguments, case)]


@pytest.mark.usefixtures("_deterministic")
@on_every_backend
@every_case()
def test_deterministic_algorithms(case, backend):
    fussy = bits_of(case, backend)
    torch.use_deterministic_algorithms(False)
    for got, expected in zip(fussy, bits_of(case, backend), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("_deterministic")
def test_updates_with_deterministic_algorithms():
    queue, bank, target = NegativeQueue(6, 4, seed=0, ids=True), MemoryBank(6, 4, seed=0), torch.zeros(9)
    queue.enqueue_(torch.randn(8, 4), normalize=True, ids=torch.arange(8))
    bank.update_(torch.arange(3), torch.randn(3, 4))
    ema_update_([target], [torch.ones(9)], 0.5)
    assert torch.isfinite(torch.cat([queue.queue, bank.bank])).all()
    assert torch.equal(target, torch.full((9,), 0.5))


# Workers and threads


class _AllCases(torch.utils.data.Dataset):
    """One item: every case's loss, statistics and gradients."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return [bits_of(case) for case in CASES]


def same_bits(results, expected):
    for got, want in zip(results, expected, strict=True):
        for x, y in zip(got, want, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def worker_gives_the_same(method):
    here = _AllCases()[0]
    options = {"batch_size": None, "num_workers": 1, "timeout": 120, "multiprocessing_context": method}
    (there,) = torch.utils.data.DataLoader(_AllCases(), **options)
    same_bits(there, here)


@pytest.mark.long
@only_compiled
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_gives_the_same(method):
    # In a process of its own: after a backward pass that started autograd's threads of a device, as another test may
    # have run, PyTorch refuses backward passes in forked processes.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(worker_gives_the_same, method).result()


@only_compiled
def test_threads_at_once_give_the_same():
    alone = [bits_of(case) for case in CASES]

    def all_cases(first):
        # Each begins elsewhere, so that different operators meet.
        order = [(first + i) % len(CASES) for i in range(len(CASES))]
        results = {place: bits_of(CASES[place]) for place in order}
        return [results[place] for place in range(len(CASES))]

    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(all_cases, range(8)):
            same_bits(together, alone)
