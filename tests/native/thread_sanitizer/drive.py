"""Every CPU operator, forward and backward, with sizes that give several threads something to do.

python drive.py LIBRARY [OPERATOR]: under ThreadSanitizer (../test_thread_sanitizer.py). Values are tested elsewhere;
here they must be finite.
"""

import itertools
import sys

import torch

ROWS, KEYS, DIM = 700, 900, 64
ops = torch.ops.ssl_fast


def tensors(*shapes, dtype):
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def backward(outputs, inputs):
    """All gradients of the outputs that have one; both must be finite."""
    outputs = [x for x in outputs if x.is_floating_point() and x.numel()]
    gradients = torch.autograd.grad(sum(x.double().sum() for x in outputs if x.requires_grad), inputs)
    assert all(x.isfinite().all() for x in (*outputs, *gradients))


def nt_xent(dtype, scale, learnt):
    z = tensors((ROWS, DIM), (ROWS, DIM), dtype=dtype)
    for reduction in (0, 1):
        backward(ops.nt_xent(*z, scale, learnt, reduction, True)[:1], [*z, learnt])


def info_nce(dtype, scale, learnt):
    query, positive, keys, own = tensors((ROWS, DIM), (ROWS, DIM), (KEYS, DIM), (ROWS, 7, DIM), dtype=dtype)
    for negatives, normalize in ((None, True), (keys, True), (own, True), (keys.detach(), False)):
        inputs = [query, positive, learnt, *([negatives] if negatives is not None and normalize else [])]
        outputs = ops.info_nce(query, positive, negatives, normalize, scale, learnt, 1, True)
        backward(outputs[:1], inputs)


def similarity_lse(dtype, scale, learnt):
    a, b, keys = tensors((ROWS, DIM), (ROWS, DIM), (KEYS, DIM), dtype=dtype)
    ids, key_ids = torch.arange(ROWS) % 50, torch.arange(KEYS) % 50
    positive = torch.zeros(ROWS, dtype=dtype if dtype == torch.float64 else torch.float32)
    for mask in range(4):
        known = (ids, ids) if mask > 1 else (None, None)
        for columns in (False, True):
            outputs = ops.similarity_lse(a, b, *known, mask, True, True, columns, scale, learnt, positive)
            backward(outputs[:2], [a, b, learnt])
        if mask:  # rows with each other
            of_a = ids if mask > 1 else None
            outputs = ops.similarity_lse(a, None, of_a, None, mask, True, True, False, scale, learnt, positive)
            backward(outputs[:1], [a, learnt])
    outputs = ops.similarity_lse(a, keys, ids, key_ids, 2, True, False, False, scale, learnt, positive)
    backward(outputs[:1], [a, keys, learnt])


def pair_similarity(dtype, scale, learnt):
    a, b = tensors((40 * ROWS, DIM), (40 * ROWS, DIM), dtype=dtype)
    backward([ops.pair_similarity(a, b, True, False)], [a, b])


def class_similarity(dtype, scale, learnt):
    (x,) = tensors((20 * ROWS, DIM), dtype=dtype)
    backward(ops.class_similarity(x, torch.arange(20 * ROWS) % 50)[:1], [x])


def similarity_softplus(dtype, scale, learnt):
    a, b, bias = tensors((ROWS, DIM), (ROWS, DIM), (), dtype=dtype)
    positive = torch.zeros(ROWS, dtype=dtype if dtype == torch.float64 else torch.float32)
    outputs = ops.similarity_softplus(a, b, True, scale, learnt, bias, positive)
    backward([outputs[0][0]], [a, b, learnt, bias])


@torch.no_grad()
def ema_update_(dtype, scale, learnt):
    target, source = (tensors((200_000,), (7,), (300, 300), (ROWS, DIM), dtype=dtype) for _ in range(2))
    target[3].data = target[3].data.T.contiguous().T
    for side in (target, source):
        side.append(torch.arange(100_000))
    ops.ema_update_(target, source, 0.9, None, torch.tensor(3))
    assert all(x.isfinite().all() for x in target)


@torch.no_grad()
def enqueue_(dtype, scale, learnt):
    queue, queue_ptr = torch.zeros(KEYS, DIM, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    for normalize in (False, True, False):
        ops.enqueue_(queue, queue_ptr, torch.randn(10 * ROWS, DIM), normalize)
    assert queue.isfinite().all()


OPERATORS = (
    nt_xent, info_nce, similarity_lse, pair_similarity, class_similarity, similarity_softplus, ema_update_, enqueue_,
)  # fmt: skip


def main(library: str, only: str = "") -> None:
    torch.set_num_threads(1)  # torch's own threads are not instrumented
    torch.manual_seed(0)
    torch.ops.load_library(library)
    for dtype, scale in itertools.product((torch.float32, torch.bfloat16, torch.float64), (10.0, 100.0)):
        for operator in OPERATORS:
            if only in ("", operator.__name__):
                learnt = torch.full((), scale, dtype=torch.float64, requires_grad=True)
                operator(dtype, scale, learnt)
                print(operator.__name__, dtype, scale, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
