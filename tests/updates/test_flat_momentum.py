"""FlatMomentum: the same numbers as the momentum update of modules, whatever happens to the modules."""

import copy

import pytest
import torch
from torch import nn

from ssl_fast import FlatMomentum, ema_update_
from ssl_fast.memory import momentum


class Encoder(nn.Module):
    """Several dtypes and layouts, BatchNorm's buffers, a parameter without elements."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)
        self.rounded = nn.Parameter(torch.randn(7).bfloat16())
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.transposed = nn.Parameter(torch.randn(4, 9).T)
        self.square = nn.Parameter(torch.randn(4, 4))
        self.sliced = nn.Parameter(torch.randn(9, 8)[:, ::2])

    def forward(self, x):
        return self.head(self.norm(self.convolution(x)).mean((2, 3))) + self.transposed.sum() * self.sliced.mean()


@pytest.fixture
def encoder():
    return Encoder()


def step(encoder):
    """Changes parameters and buffers, as training does."""
    encoder(torch.randn(4, 3, 5, 5))
    with torch.no_grad():
        for x in encoder.parameters():
            x.add_(torch.randn(x.shape).to(x.dtype))


def memory(module) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in module.parameters() if x.numel()}


def assert_same(one, other):
    for (name, x), y in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6, msg=name)


def assert_follows(key, encoder, steps=3):
    """Updates as ema_update_ of modules would, before and after which both lie flat."""
    expected = copy.deepcopy(key.module)
    for _ in range(steps):
        step(encoder)
        key.update_(0.75)
        ema_update_(expected, encoder, 0.75)
        assert_same(key.module, expected)
    assert len(memory(key.module)) == len(memory(encoder)) == len({x.dtype for x in encoder.parameters()})


def test_same_values_objects_and_layouts(encoder):
    before, objects = copy.deepcopy(encoder.state_dict()), list(encoder.parameters())
    key = FlatMomentum(encoder)
    assert all(a is b for a, b in zip(encoder.parameters(), objects, strict=True))
    for name, x in encoder.state_dict().items():
        assert x.equal(before[name])
        assert key.module.state_dict()[name].equal(before[name])
    assert encoder.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert key.module.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(x.data_ptr() % 64 == 0 for x in (*encoder.parameters(), *key.parameters()) if x.numel())
    assert all(x.requires_grad for x in encoder.parameters())
    assert not any(x.requires_grad for x in key.parameters())
    images = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(key(images), encoder(images))
    assert set(key.state_dict()) == {f"module.{name}" for name in before}


def test_follows(encoder):
    assert_follows(FlatMomentum(encoder), encoder)


def test_one_tensor_a_dtype_goes_to_the_operator(encoder, monkeypatch):
    key, sizes = FlatMomentum(encoder), []
    monkeypatch.setattr(
        momentum,
        "_update",
        lambda pairs, *options: sizes.append([(t.dtype, t.dim()) for t, _ in pairs]),
    )
    key.update_(0.9)
    assert sizes == [[(torch.bfloat16, 1), (torch.float32, 1)]]


def test_tied_weights_stay_tied(encoder):
    encoder.tied = nn.Linear(6, 5, bias=False)
    encoder.tied.weight = encoder.head.weight
    key = FlatMomentum(encoder)
    assert encoder.tied.weight is encoder.head.weight
    assert key.module.tied.weight is key.module.head.weight
    assert_follows(key, encoder)


@pytest.mark.parametrize("mode", ["copy", "ema", "keep"])
def test_buffers(encoder, mode):
    key = FlatMomentum(encoder, buffers=mode)
    expected = copy.deepcopy(key.module)
    step(encoder)
    key.update_(0.5)
    ema_update_(expected, encoder, 0.5, mode)
    assert_same(key.module, expected)


def cast(key, encoder):
    key.double()
    encoder.double()


def cast_one(key, encoder):
    encoder.double()


def load(key, encoder):
    encoder.load_state_dict(Encoder().state_dict())


def load_assigning(key, encoder):
    encoder.load_state_dict(Encoder().state_dict(), assign=True)


def replace_parameter(key, encoder):
    encoder.head.bias = nn.Parameter(torch.randn(5))


def replace_module(key, encoder):
    key.module.norm = copy.deepcopy(key.module.norm)


def set_data(key, encoder):
    key.module.head.weight.data = torch.randn(5, 6)


def transpose_in_place(key, encoder):
    encoder.square.data = encoder.square.data.T


def other_layout(key, encoder):
    encoder.to(memory_format=torch.contiguous_format)


CHANGES = [
    cast, cast_one, load, load_assigning, replace_parameter, replace_module, set_data, transpose_in_place, other_layout,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_follows_after(encoder, change):
    key = FlatMomentum(encoder)
    change(key, encoder)
    expected = copy.deepcopy(key.module)
    step(encoder) if encoder.head.bias.dtype == torch.float32 else None
    key.update_(0.75)
    ema_update_(expected, encoder, 0.75)
    assert_same(key.module, expected)
    for t, s in zip(key.parameters(), encoder.parameters(), strict=True):
        assert t.stride() == s.stride()
    dtypes = {(t.dtype, s.dtype) for t, s in zip(key.parameters(), encoder.parameters(), strict=True)}
    assert len(memory(key.module)) == len(memory(encoder)) == len(dtypes)


def test_autograd_sees_the_write(encoder):
    key = FlatMomentum(encoder)
    step(encoder)
    images = torch.randn(4, 3, 5, 5, requires_grad=True)
    out = key(images).sum()
    key.update_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_laid_flat_in_inference_mode_it_still_trains(encoder):
    with torch.inference_mode():
        key = FlatMomentum(encoder)
        key.double(), encoder.double()
        key.update_(0.5)
    encoder.float(), key.float()
    encoder(torch.randn(4, 3, 5, 5)).sum().backward()
    torch.optim.SGD(encoder.parameters(), 0.1).step()
    assert_follows(key, encoder)


def test_never_laid_flat_during_a_capture(encoder, monkeypatch):
    key = FlatMomentum(encoder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    key.update_(0.5)
    encoder.double()
    with pytest.raises(RuntimeError, match="call it once before the graph capture"):
        key.update_(0.5)


def test_an_optimizer_made_before_trains_it(encoder):
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    key = FlatMomentum(encoder)
    before = encoder.head.bias.clone()
    for _ in range(2):
        encoder(torch.randn(4, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    assert not encoder.head.bias.equal(before)
    key.update_(0.0)
    assert key.module.head.bias.equal(encoder.head.bias)


def test_copies_and_checkpoints(encoder, tmp_path):
    key = FlatMomentum(encoder)
    step(encoder)
    key.update_(0.9)
    both = copy.deepcopy({"encoder": encoder, "key": key})  # the copy follows the copied encoder
    assert memory(both["key"]).isdisjoint(memory(key))
    assert_follows(both["key"], both["encoder"])
    alone = copy.deepcopy(key)
    assert alone._encoder[0] is not encoder
    torch.save(key.state_dict(), tmp_path / "key.pt")
    other = FlatMomentum(Encoder())
    other.load_state_dict(torch.load(tmp_path / "key.pt", weights_only=True))
    assert_same(other, key)
    assert_follows(other, other._encoder[0])


def test_a_refused_update_changes_nothing(encoder):
    key = FlatMomentum(encoder)
    step(encoder)
    before = copy.deepcopy(key.state_dict())
    for value, options in ((1.5, {}), ("0.9", {}), (0.9, {"seed": 1.5})):
        with pytest.raises((ValueError, TypeError), match=r"momentum|seed"):
            key.update_(value, **options)
    encoder.head = nn.Linear(6, 4)
    with pytest.raises(ValueError, match=r"source\[head.weight\]: expected shape"):
        key.update_(0.9)
    for name, x in key.state_dict().items():
        assert x.equal(before[name]), name


def test_random_rounding_reaches_it():
    encoder = nn.Linear(50, 40).bfloat16()
    key = FlatMomentum(encoder)
    with torch.no_grad():
        encoder.weight.fill_(1.5)
        key.module.weight.fill_(1)
    key.update_(0.999)
    assert key.module.weight.eq(1).all()
    key.update_(0.999, seed=3)
    assert key.module.weight.unique().numel() == 2


class Subclass(torch.Tensor):
    pass


def with_parameter(make):
    encoder = nn.Linear(4, 3)
    encoder.other = make(encoder.weight.data)
    return encoder


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3),), TypeError, "encoder: expected a module, got Tensor"),
        ((nn.Linear(2, 2), "mean"), ValueError, "buffers: expected one of copy, ema, keep, got 'mean'"),
        (
            (with_parameter(lambda weight: nn.Parameter(weight.view(6, 2))),), ValueError,
            r"encoder\[other\]: expected memory of its own, got that of weight|encoder\[weight\]: .* that of other",
        ),
        (
            (with_parameter(lambda weight: nn.Parameter(weight.clone().as_subclass(Subclass))),), TypeError,
            r"encoder\[other\]: expected a plain tensor, got Subclass",
        ),
        ((nn.LazyLinear(3),), ValueError, "encoder: expected parameters with shapes, got a lazy weight"),
    ],
)  # fmt: skip
def test_what_it_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        FlatMomentum(*arguments)
