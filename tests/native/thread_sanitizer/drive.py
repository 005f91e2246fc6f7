"""Every CPU operator, forward and backward, with sizes that give several threads something to do.

python drive.py LIBRARY [OPERATOR]: under ThreadSanitizer (../test_thread_sanitizer.py). Values are tested elsewhere;
here they must be finite.
"""

import itertools
import sys

import torch

ROWS, KEYS = 700, 900
# A type and a width. Pairs of rows of 96 numbers are kept for the backward pass, those of shorter ones are not.
KINDS = ((torch.float32, 64), (torch.float32, 96), (torch.bfloat16, 96), (torch.float64, 64))
ops = torch.ops.ssl_fast


def tensors(*shapes, dtype):
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def backward(outputs, inputs):
    """All gradients of the outputs that have one; both must be finite."""
    outputs = [x for x in outputs if x.is_floating_point() and x.numel()]
    gradients = torch.autograd.grad(sum(x.double().sum() for x in outputs if x.requires_grad), inputs)
    assert all(x.isfinite().all() for x in (*outputs, *gradients))


def nt_xent(dtype, dim, scale, learnt):
    z = tensors((ROWS, dim), (ROWS, dim), dtype=dtype)
    for reduction in (0, 1):
        backward(ops.nt_xent(*z, scale, learnt, reduction, True)[:1], [*z, learnt])


def info_nce(dtype, dim, scale, learnt):
    query, positive, keys, own = tensors((ROWS, dim), (ROWS, dim), (KEYS, dim), (ROWS, 7, dim), dtype=dtype)
    for negatives, normalize in ((None, True), (keys, True), (own, True), (keys.detach(), False)):
        inputs = [query, positive, learnt, *([negatives] if negatives is not None and normalize else [])]
        outputs = ops.info_nce(query, positive, negatives, normalize, scale, learnt, 1, True)
        backward(outputs[:1], inputs)


def similarity_lse(dtype, dim, scale, learnt):
    a, b, keys = tensors((ROWS, dim), (ROWS, dim), (KEYS, dim), dtype=dtype)
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


def pair_similarity(dtype, dim, scale, learnt):
    a, b = tensors((40 * ROWS, dim), (40 * ROWS, dim), dtype=dtype)
    backward([ops.pair_similarity(a, b, True, False)], [a, b])


def class_similarity(dtype, dim, scale, learnt):
    (x,) = tensors((20 * ROWS, dim), dtype=dtype)
    backward(ops.class_similarity(x, torch.arange(20 * ROWS) % 50)[:1], [x])


def similarity_softplus(dtype, dim, scale, learnt):
    a, b, bias = tensors((ROWS, dim), (ROWS, dim), (), dtype=dtype)
    positive = torch.zeros(ROWS, dtype=dtype if dtype == torch.float64 else torch.float32)
    outputs = ops.similarity_softplus(a, b, True, scale, learnt, bias, positive)
    backward([outputs[0][0]], [a, b, learnt, bias])


def positive_loss(dtype, dim, scale, learnt):
    lse, positive, several = tensors((2 * 20 * ROWS,), (20 * ROWS,), (20 * ROWS, 3), dtype=torch.float64)
    for one_or_several, mean_in_log in ((positive, False), (several, False), (several, True)):
        cast = one_or_several.to(dtype if dtype == torch.float64 else torch.float32)
        loss = ops.positive_loss(lse, cast, None, True, mean_in_log, scale, learnt, 1)
        backward([loss], [lse, one_or_several, learnt])


@torch.no_grad()
def ema_update_(dtype, dim, scale, learnt):
    target, source = (tensors((200_000,), (7,), (300, 300), (ROWS, dim), dtype=dtype) for _ in range(2))
    target[3].data = target[3].data.T.contiguous().T
    for side in (target, source):
        side.append(torch.arange(100_000))
    ops.ema_update_(target, source, 0.9, None, torch.tensor(3))
    assert all(x.isfinite().all() for x in target)


@torch.no_grad()
def enqueue_(dtype, dim, scale, learnt):
    queue, queue_ptr = torch.zeros(KEYS, dim, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    for normalize in (False, True, False):
        ops.enqueue_(queue, queue_ptr, torch.randn(10 * ROWS, dim), normalize)
    assert queue.isfinite().all()


OPERATORS = (
    nt_xent, info_nce, similarity_lse, pair_similarity, class_similarity, similarity_softplus, positive_loss,
    ema_update_, enqueue_,
)  # fmt: skip


def main(library: str, only: str = "") -> None:
    torch.set_num_threads(1)  # torch's own threads are not instrumented
    torch.manual_seed(0)
    torch.ops.load_library(library)
    for (dtype, dim), scale in itertools.product(KINDS, (10.0, 100.0)):
        for operator in OPERATORS:
            if only in ("", operator.__name__):
                learnt = torch.full((), scale, dtype=torch.float64, requires_grad=True)
                operator(dtype, dim, scale, learnt)
                print(operator.__name__, dtype, dim, scale, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
