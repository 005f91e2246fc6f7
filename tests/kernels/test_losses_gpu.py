"""The Triton losses on a device: what the interpreter cannot show besides what the shared tests do there.

Graphs, no waiting for the device, the same bits in every run, memory, matrix units of half types and TF32.

A dropped or wrong mask is noticed by `test_every_width`, which holds every loss to the float64 reference. Without a
GPU, test_mutations.py drops each mask for Triton's interpreter; tests/ptx/mutations.py makes other mistakes in the PTX.
"""

import pytest
import torch

import ssl_fast
from bench.gpu.timing import added_megabytes, graph_of
from ssl_fast import NegativeQueue, ema_update_, functional
from tests.helpers.backends import why_not
from tests.helpers.evaluate import assert_agrees, widened
from tests.helpers.loss_cases import REPRESENTATIVE, arguments_of, gradients_of, leaves, loss_of, operator_of

reason = why_not("nt_xent", "triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=f"triton: {reason}")]
every_case = pytest.mark.parametrize("case", REPRESENTATIVE)
SIZES = {"count": 1000, "negatives": 5000, "dim": 128}


def sizes(case):
    return SIZES | ({"count": 64, "negatives": 100} if case == "info_nce own" else {})


def results(case, arguments, temperature=0.1):
    loss, stats = loss_of(case, "triton", arguments, temperature, return_stats=True)
    loss.backward()
    return [loss.detach(), *stats, *(arguments[name].grad for name in gradients_of(case))]


@pytest.mark.quick
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_in_100_runs(case, dtype):
    first = None
    for _ in range(100):
        arguments = leaves(arguments_of(case, "triton", dtype=dtype, **sizes(case)), gradients_of(case))
        now = results(case, arguments)
        first = first or now
        assert all(torch.equal(a, b) for a, b in zip(now, first, strict=True))


@every_case
@pytest.mark.parametrize("dim", [1, 7, 64, 96, 128, 256, 300, 512, 1024, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.1, 0.01])
def test_every_width(case, dim, dtype, temperature):
    count = 24 if case == "info_nce own" else 300
    arguments = arguments_of(case, "triton", count=count, negatives=333, dim=dim, dtype=dtype)
    assert_agrees(operator_of(case), "triton", arguments, temperature, gradients_of(case), with_eager=True, floor=0.1)


@pytest.mark.quick
@every_case
def test_tf32_is_within_its_bound(case):
    arguments = arguments_of(case, "triton", **sizes(case))
    names = gradients_of(case)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        leaf = leaves(arguments, names)
        loss = loss_of(case, "triton", leaf)
        loss.backward()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    wide = leaves({name: widened(x) for name, x in arguments.items()}, names)
    truth = loss_of(case, "reference", wide)
    truth.backward()
    assert abs(loss.item() - truth.item()) <= 2e-3 * abs(truth.item())
    for name in names:
        expected = wide[name].grad
        assert (leaf[name].grad - expected).abs().max() <= 2e-3 * expected.abs().max()


def step_of(dtype=torch.bfloat16):
    """A step of MoCo and SimCLR together, and what it changes."""
    torch.manual_seed(0)
    encoder, key_encoder = (torch.nn.Linear(32, 64).cuda() for _ in range(2))
    queue = NegativeQueue(1000, 64, seed=0).cuda()
    x = torch.randn(96, 32, device="cuda")
    temperature = torch.nn.Parameter(torch.full((), 0.2, device="cuda"))

    def step():
        for p in (*encoder.parameters(), temperature):
            p.grad = None
        with torch.autocast("cuda", dtype):
            query = encoder(x)
            with torch.no_grad():
                ema_update_(key_encoder, encoder, 0.99)
                key = key_encoder(x)
        loss = functional.info_nce(query, key, queue, 0.2) + functional.nt_xent(query, key, temperature)
        queue.enqueue_(key, normalize=True)
        loss.backward()
        with torch.no_grad():
            for p in encoder.parameters():
                p -= 0.1 * p.grad
        return loss

    return step, [*encoder.parameters(), *key_encoder.parameters(), queue.queue, queue.queue_ptr, temperature]


@pytest.mark.quick
def test_a_whole_step_waits_for_nothing():
    step, _ = step_of()
    step()  # compiles, loads, makes the momentum update's table
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.quick
def test_a_graph_of_a_whole_step_gives_the_same_bits():
    eager, state = step_of()
    captured, captured_state = step_of()
    replay = graph_of(captured)
    for _ in range(3):
        eager()
    for a, b in zip(state, captured_state, strict=True):
        assert torch.equal(a, b)
    for _ in range(5):
        eager()
        replay()
        for a, b in zip(state, captured_state, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("rows", "limit"), [(8192, 40e6), (131072, 1e9)])
def test_memory_is_of_the_rows_not_of_their_pairs(rows, limit):
    z1, z2 = (torch.randn(rows // 2, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))

    def run():
        z1.grad = z2.grad = None
        functional.nt_xent(z1, z2, 0.1).backward()

    assert 1e6 * added_megabytes(run) < limit


@pytest.mark.quick
def test_memory_of_a_long_queue():
    query, key = (torch.randn(1024, 128, device="cuda", requires_grad=True) for _ in range(2))
    queue = NegativeQueue(65536, 128, seed=0).cuda()

    def run():
        query.grad = key.grad = None
        functional.info_nce(query, key, queue, 0.1).backward()

    assert 1e6 * added_megabytes(run) < 40e6  # the matrix would be 268 MB


def test_offsets_beyond_32_bits():
    """More than 2^31 elements of queue; only rows at its ends resemble the queries."""
    size = (1 << 31) // 64 + 7
    queue = NegativeQueue(8, 64, dtype=torch.bfloat16).cuda()
    queue.queue = torch.zeros(size, 64, dtype=torch.bfloat16, device="cuda")
    query = torch.nn.functional.normalize(torch.randn(4, 64, device="cuda"))
    queue.queue[:2], queue.queue[-2:] = query[:2].bfloat16(), query[2:].bfloat16()
    loss = functional.info_nce(query.bfloat16(), query.bfloat16(), queue, 0.02, reduction="none")
    # One negative as near as the positive, and size - 1 that weigh exp(-50) of it.
    assert (loss - 0.6931).abs().max() < 0.05


def test_compile_without_graph_breaks():
    torch._dynamo.reset()
    queue = NegativeQueue(300, 64, seed=0).cuda()

    def step(query, key):
        loss, stats = functional.info_nce(query, key, queue, 0.2, return_stats=True)
        return loss + functional.nt_xent(query, key, 0.1), stats.top1

    query, key = torch.randn(2, 50, 64, device="cuda").unbind()
    compiled = torch.compile(step, fullgraph=True)
    gradients = []
    for run in (step, compiled):
        leaf = query.clone().requires_grad_()
        loss, _ = run(leaf, key)
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.quick
def test_warmup_leaves_nothing_to_compile():
    torch.manual_seed(0)
    ssl_fast.warmup("cuda", [(48, 32)], queue_size=64)
    views = [torch.randn(48, 32, device="cuda", requires_grad=True) for _ in range(2)]
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.cuda.graph(graph, stream=stream):
        functional.nt_xent(*views, 0.1)
    graph.replay()
