"""The circular queue on every backend: the key by key oracle, checkpoints, refusals that change nothing."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssl_fast
from ssl_fast import NegativeQueue
from tests.helpers import oracle
from tests.helpers.backends import device_of, every_backend, every_fused_backend, only_compiled
from tests.helpers.strategies import DTYPES, LAYOUTS, dtypes, embeddings, kinds, lay_out, layouts, seeds

on_every_backend = every_backend("enqueue_")


def enqueue(backend, queue, keys):
    with ssl_fast.backend(backend):
        queue.enqueue_(keys)


def rounded(x, dtype) -> np.ndarray:
    return x.to(dtype).double().cpu().numpy()


@on_every_backend
@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
    dtypes,
    dtypes,
    layouts,
    seeds,
)
def test_any_sequence_of_batches(backend, size, dim, counts, queue_dtype, keys_dtype, layout, seed):
    queue = NegativeQueue(size, dim, dtype=queue_dtype, seed=1).to(device_of(backend))
    expected, pointer = queue.queue.double().cpu().numpy(), 0
    for step, count in enumerate(counts):
        plain = embeddings(count, dim, keys_dtype, "ordinary", seed + step).to(device_of(backend))
        keys = lay_out(plain, layout)
        before = keys.clone()
        enqueue(backend, queue, keys)
        expected, pointer = oracle.enqueue(expected, pointer, rounded(keys, queue_dtype))
        assert torch.equal(keys, before)
        assert queue.queue_ptr.item() == pointer
        np.testing.assert_array_equal(queue.queue.double().cpu().numpy(), expected)


@on_every_backend
@given(st.integers(1, 80), dtypes, dtypes, kinds, layouts, seeds)
def test_normalized_keys_are_unit_rows(backend, dim, queue_dtype, keys_dtype, kind, layout, seed):
    queue = NegativeQueue(9, dim, dtype=queue_dtype).to(device_of(backend))
    keys = lay_out(embeddings(7, dim, keys_dtype, kind, seed).to(device_of(backend)), layout)
    with ssl_fast.backend(backend):
        queue.enqueue_(keys, normalize=True)
    expected = np.stack(oracle.units(keys.double().cpu().numpy()))
    wide = torch.float64 if keys_dtype == torch.float64 else torch.float32
    # Rounded in the arithmetic and to the queue, whose dtype may have no smaller numbers than its tiny.
    allowed = 4 * torch.finfo(wide).eps + torch.finfo(queue_dtype).eps
    np.testing.assert_allclose(
        queue.queue[:7].double().cpu().numpy(), expected, rtol=allowed, atol=torch.finfo(queue_dtype).tiny
    )


@on_every_backend
def test_normalized_keys_that_have_no_direction(backend):
    queue = NegativeQueue(4, 3).to(device_of(backend))
    keys = torch.tensor([[0.0, 0, 0], [math.inf, 1, 1], [math.nan, 1, 1], [3, 0, 4]], device=device_of(backend))
    with ssl_fast.backend(backend):
        queue.enqueue_(keys, normalize=True)
    assert queue.queue[0].tolist() == [0, 0, 0]
    assert queue.queue[1].isnan().any()
    assert queue.queue[2].isnan().any()
    torch.testing.assert_close(queue.queue[3].cpu(), torch.tensor([0.6, 0, 0.8]))


@on_every_backend
@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("pointer", [0, 3, 9])
def test_wrap_by_hand(backend, count, pointer):
    queue = NegativeQueue(10, 1).to(device_of(backend))
    queue.queue.zero_()
    queue.queue_ptr.fill_(pointer)
    enqueue(backend, queue, torch.arange(1.0, count + 1, device=device_of(backend))[:, None])
    # Place p holds the last key j with (pointer + j) mod 10 = p, counted from 1, or still 0.
    expected = [max((j + 1 for j in range(count) if (pointer + j) % 10 == p), default=0) for p in range(10)]
    assert queue.queue[:, 0].tolist() == expected
    assert queue.queue_ptr.tolist() == [(pointer + count) % 10]


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_cast_as_torch_casts(backend, dtype, layout):
    queue = NegativeQueue(40, 7, dtype=dtype).to(device_of(backend))
    keys = lay_out(100 * torch.randn(25, 7, device=device_of(backend)), layout)
    enqueue(backend, queue, keys)
    assert torch.equal(queue.queue[:25], keys.to(dtype))


@on_every_backend
def test_nan_and_inf_are_stored(backend):
    queue = NegativeQueue(4, 2).to(device_of(backend))
    enqueue(backend, queue, torch.tensor([[math.nan, 1.0], [math.inf, -math.inf]], device=device_of(backend)))
    assert queue.queue[0].isnan().tolist() == [True, False]
    assert queue.queue[1].tolist() == [math.inf, -math.inf]


@on_every_backend
def test_neither_storage_nor_version_is_lost(backend):
    queue = NegativeQueue(6, 3).to(device_of(backend))
    query = torch.ones(2, 3, requires_grad=True, device=device_of(backend))
    loss = (query @ queue.queue.T).sum()
    pointers = queue.queue.data_ptr(), queue.queue_ptr.data_ptr()
    enqueue(backend, queue, torch.ones(4, 3, requires_grad=True, device=device_of(backend)))
    assert (queue.queue.data_ptr(), queue.queue_ptr.data_ptr()) == pointers
    assert not queue.queue.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@on_every_backend
def test_keys_may_be_rows_of_the_queue(backend):
    queue = NegativeQueue(6, 3, seed=0).to(device_of(backend))
    queue.queue_ptr.fill_(2)
    before = queue.queue.clone()
    enqueue(backend, queue, queue.queue[1:4])
    assert torch.equal(queue.queue, torch.cat([before[:2], before[1:4], before[5:]]))


@on_every_backend
def test_a_queue_made_in_inference_mode(backend):
    with torch.inference_mode():
        queue = NegativeQueue(6, 3).to(device_of(backend))
        enqueue(backend, queue, torch.ones(4, 3, device=device_of(backend)))
    assert queue.queue_ptr.item() == 4
    assert queue.queue[:4].eq(1).all()


def test_rows_start_as_random_unit_vectors():
    queue = NegativeQueue(500, 64, seed=5)
    torch.testing.assert_close(queue.queue.norm(dim=1), torch.ones(500))
    assert queue.queue.is_contiguous()
    assert queue.queue_ptr.dtype == torch.int64
    assert queue.queue_ptr.tolist() == [0]
    assert queue.queue.mean().abs() < 0.01
    assert torch.equal(queue.queue, NegativeQueue(500, 64, seed=5).queue)
    assert not torch.equal(queue.queue, NegativeQueue(500, 64, seed=6).queue)


def test_a_seed_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    NegativeQueue(5, 4, seed=3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    first = NegativeQueue(5, 4).queue
    torch.manual_seed(1)
    assert torch.equal(NegativeQueue(5, 4).queue, first)


@on_every_backend
def test_a_checkpoint_keeps_rows_and_pointer(backend, tmp_path):
    device = device_of(backend)
    queue = NegativeQueue(10, 3, seed=0).to(device)
    enqueue(backend, queue, torch.randn(7, 3, device=device))
    assert set(queue.state_dict()) == {"queue", "queue_ptr"}
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    resumed = NegativeQueue(10, 3, seed=1).to(device)
    resumed.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    more = torch.randn(6, 3, device=device)
    for one in (queue, resumed):
        enqueue(backend, one, more)
    assert torch.equal(queue.queue, resumed.queue)
    assert torch.equal(queue.queue_ptr, resumed.queue_ptr)


@pytest.mark.parametrize("pointer", [-1, 6, 2**40])
def test_a_pointer_outside_the_queue_is_not_loaded(pointer):
    queue = NegativeQueue(6, 3)
    state = {**copy.deepcopy(queue.state_dict()), "queue_ptr": torch.tensor([pointer])}
    with pytest.raises(RuntimeError, match=f"queue_ptr: expected a row from 0 to 5, got {pointer}"):
        queue.load_state_dict(state)
    assert queue.queue_ptr.item() == 0


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (torch.ones(4, 5), ValueError, r"keys: expected 3 columns as the queue, got \(4, 5\)"),
        (torch.ones(3), ValueError, r"keys: expected shape \(rows, dim\), got \(3,\)"),
        (torch.ones(2, 3, 1), ValueError, r"keys: expected shape"),
        (torch.ones(0, 3), ValueError, r"keys: expected at least one row"),
        (torch.ones(4, 3).int(), TypeError, r"keys: expected float32"),
        (torch.ones(4, 3, device="meta"), ValueError, r"keys: expected device cpu as the queue, got meta"),
        ([[1.0, 2.0, 3.0]], TypeError, r"keys: expected a Tensor, got list"),
    ],
)
def test_refusals_change_nothing(keys, error, message):
    queue = NegativeQueue(6, 3)
    before = copy.deepcopy(queue.state_dict())
    with pytest.raises(error, match=message):
        queue.enqueue_(keys)
    for name, x in queue.state_dict().items():
        assert torch.equal(x, before[name])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0, "dim": 3}, ValueError, "size: expected at least 1, got 0"),
        ({"size": 3, "dim": -1}, ValueError, "dim: expected at least 1, got -1"),
        ({"size": 3.0, "dim": 3}, TypeError, "size: expected an int, got float"),
        ({"size": True, "dim": 3}, TypeError, "size: expected an int, got bool"),
        ({"size": 3, "dim": 3, "dtype": torch.int8}, TypeError, "dtype: expected float32"),
    ],
)
def test_queues_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        NegativeQueue(**arguments)


def test_a_backend_that_cannot_run_writes_no_ids():
    queue = NegativeQueue(6, 3, ids=True)
    with ssl_fast.backend("cuda"), pytest.raises(ValueError, match="backend 'cuda' cannot run enqueue_"):
        queue.enqueue_(torch.ones(2, 3), ids=torch.tensor([4, 5]))
    assert queue.queue_ids.eq(-1).all()


@only_compiled
def test_opcheck():
    queue = NegativeQueue(6, 3)
    torch.library.opcheck(torch.ops.ssl_fast.enqueue_, (queue.queue, queue.queue_ptr, torch.ones(4, 3)))


@only_compiled
def test_the_operator_itself_refuses_shapes_it_would_misread():
    queue = NegativeQueue(6, 3)
    before = copy.deepcopy(queue.state_dict())
    bad = [
        (queue.queue, queue.queue_ptr, torch.ones(4, 2)),
        (queue.queue, queue.queue_ptr, torch.ones(3)),
        (queue.queue, torch.zeros(2, dtype=torch.int64), torch.ones(4, 3)),
        (queue.queue, torch.zeros(1), torch.ones(4, 3)),
    ]
    for arguments in bad:
        with pytest.raises(ValueError, match="expected"):
            torch.ops.ssl_fast.enqueue_(*arguments)
    for name, x in queue.state_dict().items():
        assert torch.equal(x, before[name])


@every_fused_backend("enqueue_")
def test_compile_without_graph_breaks(backend):
    queue, expected = (NegativeQueue(6, 3, seed=0).to(device_of(backend)) for _ in range(2))

    def step(keys):
        queue.enqueue_(2 * keys)

    with ssl_fast.backend(backend):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for keys in torch.randn(3, 4, 3, device=device_of(backend)):
            compiled(keys)
            expected.enqueue_(2 * keys)
    assert torch.equal(queue.queue, expected.queue)
    assert torch.equal(queue.queue_ptr, expected.queue_ptr)


@pytest.mark.parametrize("batches", [(3, 4, 5), (20,), (1, 13, 7)])
def test_ids_lie_beside_their_keys(batches):
    queue = NegativeQueue(7, 2, seed=0, ids=True)
    assert (queue.queue_ids == -1).all()
    assert "queue_ids" in queue.state_dict()
    assert "queue_ids" not in NegativeQueue(7, 2).state_dict()
    number = 0
    for count in batches:
        ids = torch.arange(number, number + count)
        queue.enqueue_(ids[:, None].expand(count, 2).float(), ids=ids.int())
        number += count
    written = queue.queue_ids >= 0
    assert written.sum() == min(7, number)
    assert torch.equal(queue.queue[written, 0], queue.queue_ids[written].float())


def test_bad_ids_change_nothing():
    queue, keys = NegativeQueue(7, 2, seed=0, ids=True), torch.ones(3, 2)
    before = {name: x.clone() for name, x in queue.state_dict().items()}
    for ids, error, message in (
        (None, ValueError, "ids: expected one a key with ids in the queue"),
        (torch.ones(3), TypeError, "ids: expected integers"),
        (torch.arange(4), ValueError, r"ids: expected shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            queue.enqueue_(keys, ids=ids)
    with pytest.raises(ValueError, match="ids: expected None without ids"):
        NegativeQueue(7, 2).enqueue_(keys, ids=torch.arange(3))
    assert all(torch.equal(x, before[name]) for name, x in queue.state_dict().items())


def test_keys_of_the_querys_image_are_left_out():
    queue, loss = NegativeQueue(8, 4, seed=0, ids=True), ssl_fast.InfoNCELoss(0.2)
    query, positive, ids = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.tensor([5, 6, 7])
    before = loss(query, positive, queue, exclude=(ids, queue.queue_ids))
    old = torch.nn.functional.normalize(torch.randn(2, 4))
    queue.queue[:2], queue.queue_ids[:2] = old, torch.tensor([6, 6])
    now = ssl_fast.InfoNCELoss(0.2, reduction="none")(query, positive, queue, exclude=(ids, queue.queue_ids))
    kept = NegativeQueue(6, 4)
    kept.queue.copy_(queue.queue[2:])
    torch.testing.assert_close(now[1], ssl_fast.InfoNCELoss(0.2, reduction="none")(query, positive, kept)[1])
    queue.enqueue_(positive, ids=ids)  # before the backward passes
    (before + now.sum()).backward()
    assert query.grad.isfinite().all()
