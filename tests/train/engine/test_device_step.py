"""A step never reads a value from the device, and as a CUDA graph gives the eager step's numbers."""

import contextlib
import copy
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ssl_fast import checks
from ssl_fast.train.engine.cuda_graph import EAGER_STEPS, CapturedStep
from ssl_fast.train.engine.settings import Settings
from ssl_fast.train.models.method import Result
from ssl_fast.train.models.methods import build
from tests.helpers.small_runs import SMALL_RECIPES, small_recipe


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Two checks read their tensors on the CPU, where that costs no wait, and nowhere else."""
    monkeypatch.setattr(checks, "places", lambda name, x, size: None)
    monkeypatch.setattr(checks, "momentum_or_tensor", lambda value: value)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("changes", [{}, {"micro_batch": 8, "bn_groups": 4}])
@pytest.mark.parametrize("name", SMALL_RECIPES)
def test_a_step_reads_no_value(name, changes):
    """Fake tensors have shapes and no values: .item(), a branch on a tensor or a boolean index raises."""
    recipe = small_recipe(name, **changes, **({"noise": 16} if name.startswith("instdisc") else {}))
    method = build(recipe, channels=1, image_size=24, images=50)
    method.estimated = True  # the first step of noise contrast may look
    mode = FakeTensorMode()
    for module in method.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: None if x is None else mode.from_tensor(x) for name, x in tensors.items()})
    with mode:
        method.start_step(0, 10)
        index = torch.arange(16)
        result = method.loss([torch.rand(16, 1, 24, 24) for _ in recipe.views], index)
        result.loss.backward()
        method.after_backward(result.embeddings, index)
        with pytest.raises(DataDependentOutputException):
            float(result.loss.detach())


class FakeGraph:
    """A CUDA graph without a device: a replay computes again what the capture did, into the same memory."""

    def __init__(self):
        self.replay = lambda: None


def test_every_replay_leaves_its_gradients(monkeypatch):
    """zero_grad takes the gradients away before each step, and the optimiser has to find those of the replay."""
    for name in ("graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    weight, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))

    def step(views, index):
        loss = (weight * views[0].sum(0)).sum()
        loss.backward()
        return Result(loss, None, None)

    captured = CapturedStep(step, [weight, unused])
    for number in range(1, 4 * EAGER_STEPS):
        weight.grad = None
        captured([torch.full((4, 3), float(number))], torch.arange(4))
        if captured.graph is not None and number == EAGER_STEPS + 1:
            memory, views = weight.grad, captured.views
            captured.graph.replay = lambda memory=memory, views=views: memory.copy_(views[0].sum(0))
        assert weight.grad.tolist() == [4.0 * number] * 3
        assert unused.grad is None
    assert captured.calls > EAGER_STEPS + 1


def cuda_run(name, **settings):
    from lightning.fabric import Fabric  # here: the tests above need no trainer

    from ssl_fast.train.engine import run_state

    recipe = small_recipe(name, epochs=8)
    return run_state.Run(name, recipe, "digits", Settings(accelerator="cuda", **settings), Fabric("cuda", devices=1))


@pytest.mark.gpu
@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", SMALL_RECIPES)
def test_a_captured_step_is_the_eager_step(name):
    eager, captured = cuda_run(name), cuda_run(name, cuda_graph=True)
    captured.method.load_state_dict(copy.deepcopy(eager.method.state_dict()))
    for epoch in range(3):
        for one in (eager, captured):
            one.epoch, one.step = epoch, 0
            batches = iter(one.batches.epoch(epoch))
            while one.step < one.steps:
                one.train_step([next(batches)])
                one.step += 1
    torch.testing.assert_close(captured.totals, eager.totals, rtol=1e-3, atol=1e-3)
    for key, value in eager.method.state_dict().items():
        torch.testing.assert_close(captured.method.state_dict()[key], value, rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.gpu
@pytest.mark.usefixtures("few_digits")
@pytest.mark.parametrize("name", SMALL_RECIPES)
def test_a_step_on_a_gpu_does_not_wait(name):
    one = cuda_run(name)
    batches = iter(one.batches.epoch(0))
    one.train_step([next(batches)])
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.train_step([next(batches)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
