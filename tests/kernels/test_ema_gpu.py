"""The momentum update on a device, in CUDA C++ and in Triton: what the host and the interpreter cannot show besides."""

import os

import pytest
import torch

import ssl_fast
from bench.gpu.timing import graph_of
from ssl_fast import FlatMomentum, cosine_momentum, reference
from tests.helpers.backends import every_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA or ROCm device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 runs nothing on a device"),
]
by_both = every_backend("ema_update_", but=("reference", "cpu"))


def lists(sizes, dtype=torch.float32, source_dtype=torch.float32):
    return [[torch.randn(size, device="cuda").to(kind) for size in sizes] for kind in (dtype, source_dtype)]


@pytest.mark.quick
@by_both
@pytest.mark.parametrize("count", [1, 124, 125, 1020, 1021, 5000])
def test_more_tensors_than_a_table_holds(backend, count):
    target, source = lists([1 + (37 * i) % 5000 for i in range(count)])
    expected = [x.clone() for x in target]
    reference.ema_update_(expected, source, 0.9)
    with ssl_fast.backend(backend):
        ssl_fast.ema_update_(target, source, 0.9)
    for x, y in zip(target, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@by_both
def test_sizes_beyond_32_bits(backend):
    target, source = (torch.full((2**31 + 4099,), x, dtype=torch.float16, device="cuda") for x in (1.0, 2.0))
    with ssl_fast.backend(backend):
        ssl_fast.ema_update_([target], [source], 0.5)
    assert target.eq(1.5).all()


@pytest.mark.quick
@by_both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_follows_schedule_and_seed(backend, dtype):
    """The counter is on the device: replays go on with the momentum and the rounding of their step."""
    target, source = lists([70, 5000, 33], dtype)
    start = [x.clone() for x in target]
    step = torch.zeros((), dtype=torch.int64, device="cuda")

    def update():
        ssl_fast.ema_update_(target, source, cosine_momentum(step, 40, 0.9), seed=step)
        step.add_(1)

    with ssl_fast.backend(backend):
        replay = graph_of(update)
        for x, old in zip(target, start, strict=True):
            x.copy_(old)
        step.zero_()
        for _ in range(20):
            replay()
    expected = start
    for k in range(20):
        reference.ema_update_(expected, source, cosine_momentum(k, 40, 0.9), torch.tensor(k, device="cuda"))
    for x, y in zip(target, expected, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        else:  # where float32 rounds otherwise, seldom, the walk goes on elsewhere
            assert (x == y).float().mean() > 0.9


@pytest.mark.quick
@by_both
def test_it_waits_for_nothing(backend):
    target, source = lists([70, 5000])
    momentum, seed = torch.tensor(0.9, device="cuda"), torch.tensor(1, device="cuda")
    with ssl_fast.backend(backend):
        ssl_fast.ema_update_(target, source, momentum, seed=seed)
        torch.cuda.set_sync_debug_mode("error")
        try:
            ssl_fast.ema_update_(target, source, momentum, seed=seed)
            ssl_fast.ema_update_(target, source, 0.9, seed=seed)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.quick
@by_both
def test_flat_momentum_moves_to_the_device(backend):
    encoder = torch.nn.Sequential(torch.nn.Linear(70, 33), torch.nn.BatchNorm1d(33))
    key = FlatMomentum(encoder)
    encoder.cuda()
    key.cuda()
    with torch.no_grad():
        encoder[0].weight.normal_()
    expected = 0.9 * key.module[0].weight + 0.1 * encoder[0].weight
    with ssl_fast.backend(backend):
        key.update_(0.9)
    torch.testing.assert_close(key.module[0].weight.data, expected.data)


@pytest.mark.quick
@by_both
def test_the_current_stream_is_used(backend):
    target, source = lists([1 << 24])
    expected = 0.5 * (target[0] + source[0]) + 1
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with ssl_fast.backend(backend), torch.cuda.stream(stream):
        ssl_fast.ema_update_(target, source, 0.5)
        target[0].add_(1)  # in order on the same stream
    torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(target[0], expected)


@by_both
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_tensors_of_another_device_than_the_current(backend):
    target, source = (torch.full((9,), x, device="cuda:1") for x in (1.0, 2.0))
    with ssl_fast.backend(backend):
        ssl_fast.ema_update_([target], [source], 0.5)
    assert target.eq(1.5).all()
