"""ssl_fast.compat.moco beside a step of MoCo in plain lines; the original is on no index (its commit is 7397dfe)."""

import copy
import inspect
import io
import pickle
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from watch import Watch

import ssl_fast
from ssl_fast.compat import moco as ours
from ssl_fast.train.models import in_groups
from tests.helpers.examples import losses, number, run_example
from tests.helpers.processes import run


class Encoder(nn.Module):
    """With a batch norm, and a last layer `fc` as a ResNet's."""

    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU())
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x):
        return self.fc(self.body(x))


class Plain:
    """MoCo of one process, step by step: the queue is a list of keys, the oldest is overwritten."""

    def __init__(self, model):
        self.query, self.key = copy.deepcopy(model.encoder_q), copy.deepcopy(model.encoder_k)
        self.queue, self.place = [*model.queue.T.clone()], 0
        self.momentum, self.temperature = model.m, model.T

    def logits(self, im_q, im_k):
        q = normalize(self.query(im_q))
        with torch.no_grad():
            for k_weight, q_weight in zip(self.key.parameters(), self.query.parameters(), strict=True):
                k_weight.copy_(self.momentum * k_weight + (1 - self.momentum) * q_weight)
            k = normalize(self.key(im_k))
        similar = torch.cat([(q * k).sum(1)[:, None], q @ torch.stack(self.queue).T], 1)
        self.write(k)
        return similar / self.temperature

    def write(self, keys):
        for key in keys:
            self.queue[self.place] = key
            self.place = (self.place + 1) % len(self.queue)

    def loss(self, im_q, im_k):
        logits = self.logits(im_q, im_k)
        return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def model(dtype=torch.float32, seed=3, **options):
    torch.manual_seed(seed)
    return ours.MoCo(Encoder, **({"dim": 5, "K": 12, "m": 0.9, "T": 0.2} | options)).to(dtype)


def images(seed, count, dtype=torch.float32):
    return torch.randn(2, count, 6, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_forward(moco, *views):
    logits, labels = moco(*views)
    assert labels.dtype == torch.int64
    assert not labels.any()
    return cross_entropy(logits, labels)


def assert_same_state(moco, plain, tolerance):
    expected = {f"encoder_q.{name}": x for name, x in plain.query.state_dict().items()}
    expected |= {f"encoder_k.{name}": x for name, x in plain.key.state_dict().items()}
    expected |= {"queue": torch.stack(plain.queue, 1), "queue_ptr": torch.tensor([plain.place])}
    state = moco.state_dict()
    assert state.keys() == expected.keys()
    for name, x in state.items():
        torch.testing.assert_close(x, expected[name], rtol=tolerance, atol=tolerance, msg=name)


def test_signatures():
    def parameters(call):
        return [(p.name, p.default) for p in inspect.signature(call).parameters.values()]

    empty = inspect.Parameter.empty
    options = [("dim", 128), ("K", 65536), ("m", 0.999), ("T", 0.07), ("mlp", False)]
    assert parameters(ours.MoCo) == [("base_encoder", empty), *options]
    assert parameters(model().forward) == parameters(model().loss) == [("im_q", empty), ("im_k", empty)]
    assert (model().K, model().m, model().T) == (12, 0.9, 0.2)


@given(
    st.lists(st.tuples(st.integers(2, 15), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 14),
    st.integers(1, 6),
    st.floats(0.05, 1),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_steps(steps, size, dim, temperature, momentum, mlp, dtype):
    moco = model(dtype, dim=dim, K=size, T=temperature, m=momentum, mlp=mlp)
    plain, tolerance = Plain(moco), {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    for step, (count, with_logits) in enumerate(steps):
        views = images(step, count, dtype)
        loss = (by_forward if with_logits else ours.MoCo.loss)(moco, *views)
        expected = plain.loss(*views)
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
        gradients = torch.autograd.grad(loss, list(moco.encoder_q.parameters()), allow_unused=True)
        truths = torch.autograd.grad(expected, list(plain.query.parameters()))
        for got, truth, weight, same in zip(
            gradients, truths, moco.encoder_q.parameters(), plain.query.parameters(), strict=True
        ):
            scale = max(10 / temperature, truth.abs().max().item())  # a batch norm of 2 rows enlarges rounding
            torch.testing.assert_close(got, truth, rtol=0, atol=tolerance * scale)
            with torch.no_grad():  # the same step for both, so that rounding does not add up
                weight -= 0.05 * truth
                same -= 0.05 * truth
        assert_same_state(moco, plain, 10 * tolerance)


def test_the_query_encoder_alone_learns_and_storage_stays():
    moco = model()
    places = {name: x.data_ptr() for name, x in moco.state_dict().items()}
    assert [p.requires_grad for p in moco.encoder_k.parameters()] == [False] * 6
    assert all(torch.equal(k, q) for k, q in zip(moco.encoder_k.parameters(), moco.encoder_q.parameters(), strict=True))
    for step in range(2):
        moco.loss(*images(step, 4)).backward()
        by_forward(moco, *images(step, 4)).backward()
    assert {name: x.data_ptr() for name, x in moco.state_dict().items()} == places
    assert all(p.grad is None for p in moco.encoder_k.parameters())


def test_any_batch_size_runs_where_the_original_asserts():
    moco = model(K=12)
    for count in (5, 5, 5, 30):
        moco.loss(*images(count, count))
    assert moco.queue_ptr.tolist() == [45 % 12]


def test_in_one_process_too_keys_are_shuffled_for_batch_norms_in_groups():
    moco, views = model(K=8), images(0, 8)
    key = copy.deepcopy(moco.encoder_k)
    in_groups(moco.encoder_q, 2)
    in_groups(moco.encoder_k, 2)
    torch.manual_seed(5)
    moco.loss(*views)
    torch.manual_seed(5)
    order, expected = torch.randperm(8), torch.empty(8, 5)
    for part in (order[::2], order[1::2]):  # queries are together as 0, 2, 4, 6
        expected[part] = normalize(key(views[1][part])).detach()
    assert order[::2].sort().values.tolist() not in ([0, 2, 4, 6], [1, 3, 5, 7])
    torch.testing.assert_close(moco.queue.T, expected)


def test_the_loss_makes_no_logits():
    views, size = images(0, 4), 500
    moco = model(K=size)
    with Watch() as watch:
        moco.loss(*views).backward()
    assert watch.most < size
    assert not any("_local_scalar_dense" in name for name in watch.names)
    with Watch() as watch:
        by_forward(moco, *views).backward()
    assert watch.most >= size * 5


def saved(moco):
    file = io.BytesIO()
    torch.save(moco, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(moco, assign=False):
    other = model(seed=8, K=7)
    state = {name: x.clone(memory_format=torch.contiguous_format) for name, x in moco.state_dict().items()}
    other.load_state_dict(state, strict=True, assign=assign)
    return other


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda moco: pickle.loads(pickle.dumps(moco)),
    "torch.save": saved,
    "load_state_dict": loaded,
    "assign": lambda moco: loaded(moco, assign=True),
    "double and back": lambda moco: copy.deepcopy(moco).double().float(),
    "channels_last": lambda moco: copy.deepcopy(moco).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_queue_stays_rows(way):
    moco = model(K=7)
    moco.loss(*images(0, 4))
    other = WAYS[way](moco)
    assert moco.queue.T.is_contiguous()
    assert other.queue.T.is_contiguous()
    assert other.queue.shape == (5, 7)
    assert torch.equal(other.queue, moco.queue)
    assert torch.equal(other.queue_ptr, moco.queue_ptr)
    before = other.queue.clone()
    torch.testing.assert_close(other.loss(*images(1, 4)), moco.loss(*images(1, 4)))
    torch.testing.assert_close(other.queue, moco.queue)
    assert not torch.equal(other.queue, before)


@pytest.mark.parametrize("mlp", [False, True])
def test_checkpoints_of_the_original(mlp):
    torchvision = pytest.importorskip("torchvision")
    from ssl_fast.train.models.moco_checkpoint import Original, from_moco

    original = Original("resnet18", 16, 32, 2 if mlp else 1)
    moco = ours.MoCo(torchvision.models.resnet18, dim=16, K=32, mlp=mlp)
    shapes = {name: (x.shape, x.dtype) for name, x in original.state_dict().items()}
    assert {name: (x.shape, x.dtype) for name, x in moco.state_dict().items()} == shapes
    generator = torch.Generator().manual_seed(0)
    state = {
        f"module.{name}": (100 * torch.rand(shape, generator=generator)).to(dtype)
        for name, (shape, dtype) in shapes.items()
    }
    state["module.queue_ptr"] %= 32
    bare = dict(state)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(bare, "module.")
    moco.load_state_dict(bare, strict=True)
    wrapped = nn.ModuleDict({"module": moco})  # as DistributedDataParallel names it
    wrapped.load_state_dict(state, strict=True)
    assert all(torch.equal(x, state[name]) for name, x in wrapped.state_dict().items())
    # And what ours saves is such a file.
    assert from_moco({"epoch": 1, "arch": "resnet18", "state_dict": wrapped.state_dict()})["epoch"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half(dtype):
    moco, views = model(), images(0, 4)
    expected = Plain(moco).loss(*views)
    with torch.autocast("cpu", dtype):
        loss = copy.deepcopy(moco).loss(*views)
        logits, labels = copy.deepcopy(moco)(*views)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=3e-2, atol=0)
    torch.testing.assert_close(cross_entropy(logits.float(), labels), expected, rtol=3e-2, atol=0)
    half = copy.deepcopy(moco).to(dtype)
    torch.testing.assert_close(half.loss(*views.to(dtype)), expected, rtol=5e-2, atol=0)
    assert half.queue.dtype == dtype


def test_patch(tmp_path, monkeypatch):
    folder = tmp_path / "moco"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    source = "class MoCo:\n    def __init__(self, base_encoder, dim=128, K=9, m=0.9, T=0.1, mlp=False): pass\n"
    (folder / "builder.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import moco.builder as builder

        theirs = builder.MoCo
        with ssl_fast.patch("moco"):
            assert builder.MoCo is ours.MoCo
        assert builder.MoCo is theirs
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "moco"]:
            del sys.modules[name]
    assert isinstance(builder, types.ModuleType)


@pytest.mark.slow
def test_compile():
    moco, views = model(), images(0, 4)
    other = copy.deepcopy(moco)
    compiled = torch.compile(other.loss, backend="aot_eager")
    for step in range(2):
        views = images(step, 4)
        torch.testing.assert_close(compiled(*views), moco.loss(*views))
    torch.testing.assert_close(other.queue, moco.queue)


def steps_across(rank, world):
    return [steps_of(rank, world, fused) for fused in (False, True)]


def steps_of(rank, world, fused):
    """Three steps under DistributedDataParallel, beside the same in plain lines over the batches of all ranks."""
    moco, count = model(K=15), 4
    plain = Plain(moco)
    if fused:
        moco.forward = moco.loss
    parallel = nn.parallel.DistributedDataParallel(moco)
    optimizers = [torch.optim.SGD(module.parameters(), 0.1) for module in (moco.encoder_q, plain.query)]
    losses = []
    for step in range(3):
        views = [images(10 * step + other, count) for other in range(world)]
        torch.manual_seed(step)
        loss = parallel(*views[rank]) if fused else by_forward(parallel, *views[rank])
        torch.manual_seed(step)
        # Queries by rank; keys by the parts of the shuffled images, brought back.
        queries = [normalize(plain.query(q)) for q, _ in views]
        with torch.no_grad():
            for k_weight, q_weight in zip(plain.key.parameters(), plain.query.parameters(), strict=True):
                k_weight.copy_(0.9 * k_weight + 0.1 * q_weight)
            order = torch.randperm(world * count)
            parts = torch.cat([k for _, k in views])[order].split(count)
            keys = torch.empty(world * count, 5)
            keys[order] = torch.cat([normalize(plain.key(part)) for part in parts])
        queue, zeros = torch.stack(plain.queue).T, torch.zeros(count, dtype=torch.int64)
        expected = [
            cross_entropy(torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / 0.2, zeros)
            for q, k in zip(queries, keys.split(count), strict=True)
        ]
        plain.write(keys)
        losses.append(abs(loss.item() - expected[rank].item()))
        for optimizer, value in zip(optimizers, (loss, sum(expected) / world), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    pairs = [*zip(moco.encoder_q.parameters(), plain.query.parameters(), strict=True)]
    pairs += [*zip(moco.encoder_k.parameters(), plain.key.parameters(), strict=True)]
    pairs.append((moco.queue.T, torch.stack(plain.queue)))
    assert "module.queue" in parallel.state_dict()
    return max(losses), max((x - y).abs().max().item() for x, y in pairs), moco.queue_ptr.item() - plain.place


@pytest.mark.long
def test_two_processes():
    for found in run(2, steps_across):
        for lost, state, place in found:
            assert lost < 1e-5
            assert state < 1e-4
            assert place == 0


@pytest.mark.slow
def test_example():
    printed = run_example("moco_one_device", "--steps", "60")
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed)
    assert losses(printed)
