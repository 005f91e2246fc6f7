"""Every operator on fake CUDA tensors, forward and backward: no copy, no wait, outputs as its fake kernel says.

fake_device.Device holds each call to its fake kernel (ssl_fast/operators/fake_kernels.py): shapes, strides, dtypes and
devices.
"""

from itertools import cycle, product

import pytest
import torch
from fake_cases import HERE, assert_clean, scalar

from ssl_fast import kernels

OPERATORS = torch.ops.ssl_fast
# The dtypes change from call to call: each option meets some of them.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bfloat16)
N, M = 30, 48


def rows(*sizes, dtype=torch.float32):
    return torch.empty(sizes, dtype=dtype, device=HERE)


def ids(count):
    return torch.empty(count, dtype=torch.int64, device=HERE)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def scales(*, large=False):
    """As the operators take them: a number, one that asks for the other kernels, a tensor."""
    return [(10.0, None), (1.0, scalar()), *([(100.0, None)] if large else [])]


@pytest.fixture(autouse=True)
def _nothing_else(gpu):
    with torch.no_grad():
        yield
    assert_clean(gpu)
    assert gpu.launches


def upstream(reduction, count, dtype):
    return rows(count, dtype=dtype) if reduction == 0 else rows(dtype=dtype)


def test_nt_xent():
    options = product(scales(large=True), (0, 1, 2), (17, 300))
    for (scale, reduction, dim), dtype in zip(options, cycle(DTYPES), strict=False):
        z1, z2 = rows(N, dim, dtype=dtype), rows(dim, N, dtype=dtype).T
        for return_stats in (False, True):
            loss, _, sums = OPERATORS.nt_xent(z1, z2, *scale, reduction, return_stats)
        OPERATORS.nt_xent_backward(
            upstream(reduction, 2 * N, loss.dtype), z1, z2, *scale, reduction, sums
        )  # fmt: skip


@pytest.mark.parametrize("negatives", ["in batch", "shared", "own", "queue", "queue in float32"])
def test_info_nce(negatives):
    options = product(scales(), (False, True), (16, 300))
    for (scale, query_gradient, dim), dtype in zip(options, cycle(DTYPES), strict=False):
        query, positive = (rows(N, dim, dtype=dtype) for _ in range(2))
        given = {
            "in batch": None,
            "own": rows(N, M, dim, dtype=dtype),
            "queue in float32": rows(M, dim),
        }.get(negatives, rows(M, dim, dtype=dtype))  # fmt: skip
        normalize = not negatives.startswith("queue")
        for reduction in (0, 1):
            loss, _, sums, means = OPERATORS.info_nce(
                query, positive, given, normalize, *scale, reduction, reduction == 0, query_gradient
            )  # fmt: skip
        for negatives_gradient in (False, True):
            kept = given if negatives_gradient else None
            OPERATORS.info_nce_backward(
                rows(dtype=loss.dtype), query, positive, kept, given is None, normalize, *scale, 1, sums, means,
                negatives_gradient,
            )  # fmt: skip


@pytest.mark.parametrize("mask", range(4))
@pytest.mark.parametrize("others", ["itself", "as many", "more"])
def test_similarity_lse(others, mask):
    count = M if others == "more" else N
    options = product(scales(), (False, True) if others != "itself" else (False,), (False, True))
    for (scale, columns, with_ranks), dtype in zip(options, cycle(DTYPES), strict=False):
        normalize, dim = (True, not columns), 300 if with_ranks else 17
        a = rows(N, dim, dtype=dtype)
        b = None if others == "itself" else rows(count, dim, dtype=torch.float32 if with_ranks else dtype)
        of = (None, None) if mask < 2 else (ids(N), None if b is None else ids(count))
        if b is not None and (with_ranks and columns) and count != N:
            continue  # of columns there is no positive
        positive = rows(N, dtype=wide(dtype)) if with_ranks else None
        lse, column_lse, _, sums = OPERATORS.similarity_lse(
            a, b, *of, mask, *normalize, columns, *scale, positive
        )  # fmt: skip
        for wanted in ((True, b is not None), (False, with_ranks and b is not None)):
            OPERATORS.similarity_lse_backward(
                torch.empty_like(lse), torch.empty_like(column_lse) if columns else None, a, b, *of, mask, *normalize,
                *scale, sums, *wanted,
            )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_pair_similarity(dtype):
    for other, normalize in product((dtype, torch.float32), (True, False)):
        a, b = rows(N, 17, dtype=dtype), rows(N, 17, dtype=other)
        out = OPERATORS.pair_similarity(a, b, normalize, True)
        OPERATORS.pair_similarity_backward(torch.empty_like(out), a, b, normalize, True)


@pytest.mark.parametrize("dtype", DTYPES[:4])
def test_class_similarity(dtype):
    x, labels = rows(N, 17, dtype=dtype), ids(N)
    out, _ = OPERATORS.class_similarity(x, labels)
    OPERATORS.class_similarity_backward(torch.empty_like(out), x, labels)


def test_similarity_softplus():
    options = product(scales(), (True, False), (False, True))
    for (scale, normalize, with_ranks), dtype in zip(options, cycle(DTYPES), strict=False):
        a, b = (rows(N, 300 if with_ranks else 17, dtype=dtype) for _ in range(2))
        bias = scalar(-10.0, dtype=torch.float64 if normalize else torch.float32)
        sums, _, kept = OPERATORS.similarity_softplus(
            a, b, normalize, *scale, bias, rows(N, dtype=wide(dtype)) if with_ranks else None
        )  # fmt: skip
        for wanted in product((False, True), repeat=2):
            OPERATORS.similarity_softplus_backward(
                rows(N, dtype=sums.dtype), a, b, normalize, *scale, bias, sums, kept, *wanted
            )  # fmt: skip


def test_every_operator_is_here():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    # The updates are in test_fake_updates.py.
    others = {"triton_ema_update_", "triton_enqueue_"}
    assert {name.removesuffix("_backward") for name in kernels.MODULES} - others <= tested
    # The fixture asks of every test, and so of this one, that something is launched.
    OPERATORS.pair_similarity(rows(2, 3), rows(2, 3), True, True)
