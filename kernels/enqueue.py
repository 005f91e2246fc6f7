"""The circular write of keys into a queue (ssl_fast.reference.enqueue_): one launch, no sync, no workspace."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .engine.precision import rounded
from .engine.unit_rows import inverse_norm, largest_power
from .tuning import table

# Elements that a program moves: with four warps eight of each thread, which in float32 are two 128-bit accesses.
TILE = 1024


@triton.jit
def _inverse_norms(
    row,  # (BLOCK_ROWS, 1): pointers to the rows' first elements
    inside,  # (BLOCK_ROWS,)
    dim, dim_stride, BLOCK_ROWS: tl.constexpr, BLOCK_DIMS: tl.constexpr,
):  # fmt: skip
    """1 / max(|x|, EPS) of rows, as a power of two times what is left, (BLOCK_ROWS,) each.

    The rows are multiplied by the powers first, so that no square overflows.
    """
    accumulator: tl.constexpr = tl.float64 if row.dtype.element_ty == tl.float64 else tl.float32
    largest = tl.zeros((BLOCK_ROWS,), accumulator)
    for depth in range(0, dim, BLOCK_DIMS):
        column = depth + tl.arange(0, BLOCK_DIMS).to(tl.int64)
        mask = inside[:, None] & (column < dim)[None, :]
        x = tl.load(row + column[None, :] * dim_stride, mask=mask, other=0.0).to(accumulator)
        largest = tl.maximum(largest, tl.max(tl.abs(x), 1))
    power = largest_power(largest)
    squares = tl.zeros((BLOCK_ROWS,), tl.float64)
    for depth in range(0, dim, BLOCK_DIMS):
        column = depth + tl.arange(0, BLOCK_DIMS).to(tl.int64)
        mask = inside[:, None] & (column < dim)[None, :]
        x = tl.load(row + column[None, :] * dim_stride, mask=mask, other=0.0).to(accumulator) * power[:, None]
        squares += tl.sum(x * x, 1).to(tl.float64)
    return power, inverse_norm(squares, power).to(accumulator)


@triton.jit(do_not_specialize=["size", "count"])  # a batch of another size is no reason to compile
def _enqueue_kernel(
    queue,  # (K, D), any strides
    queue_ptr,  # (1,) int64
    keys,  # (B, D), any strides
    size,  # K
    count,  # B
    dim,  # D
    queue_row_stride,
    queue_dim_stride,
    keys_row_stride,
    keys_dim_stride,
    NORMALIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIMS: tl.constexpr,
    # The low bits of queue_ptr hold the pointer, of up to 2^35 rows, and the high bits count up to 2^27 programs: more
    # than any device holds.
    POINTER_BITS: tl.constexpr = 36,
):
    """A program writes a block of BLOCK_ROWS keys, BLOCK_DIMS of their columns."""
    # Programs start in any order, some of them after others have ended, so that none may store the new pointer before
    # all have read the old one. One integer atomic therefore reads the pointer and counts its reader, in the high bits
    # of queue_ptr. The program that finds all others counted stores the new pointer, which clears the count. The atomic
    # orders no other memory.
    counted = tl.atomic_add(queue_ptr, 1 << POINTER_BITS, sem="relaxed")
    pointer = (counted << (64 - POINTER_BITS)) >> (64 - POINTER_BITS)  # the low bits with their sign
    readers = (counted - pointer) >> POINTER_BITS

    # The last `size` keys are written, each where writing all keys in turn would leave it. Hence `place` wraps at most
    # once, no two keys have the same place, and each element is written by one program.
    skipped = tl.maximum(count - size, 0)
    rows = count - skipped
    start = ((pointer + skipped) % size + size) % size  # Triton's % has the sign of the dividend

    # int64: offsets pass 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK_DIMS + tl.arange(0, BLOCK_DIMS)
    place = start + row
    place = tl.where(place >= size, place - size, place)
    inside = (row < rows)[:, None] & (column < dim)[None, :]

    source = keys + (skipped + row)[:, None] * keys_row_stride + column[None, :] * keys_dim_stride
    target = queue + place[:, None] * queue_row_stride + column[None, :] * queue_dim_stride
    x = tl.load(source, mask=inside)
    if NORMALIZE:
        power, inverse = _inverse_norms(
            keys + (skipped + row)[:, None] * keys_row_stride, row < rows, dim, keys_dim_stride, BLOCK_ROWS, BLOCK_DIMS
        )  # fmt: skip
        x = x.to(power.dtype) * power[:, None] * inverse[:, None]
    tl.store(target, rounded(x, queue.dtype.element_ty), mask=inside)

    if readers == tl.num_programs(0) * tl.num_programs(1) - 1:
        end = start + rows
        tl.atomic_xchg(queue_ptr, tl.where(end >= size, end - size, end), sem="relaxed")


def enqueue_(queue: Tensor, queue_ptr: Tensor, keys: Tensor, normalize: bool = False) -> None:
    """The operator ssl_fast::triton_enqueue_: row j of keys goes to row (ptr + j) mod K of queue.

    queue (K, D) and keys (B, D), with B and D at least 1, have any float dtypes and strides. Keys are normalised if
    asked for and cast to the queue's dtype. queue_ptr: (1,) int64. All are on one device. With B > K the last K keys
    stay. queue and queue_ptr change in place, in one launch on the current stream that a CUDA graph can capture. Shapes
    that the kernel would misread raise ValueError.
    """
    if queue.dim() != 2 or keys.dim() != 2 or queue.shape[1] != keys.shape[1] or not queue.numel():
        raise ValueError(f"keys: expected (B, D) as the queue's (K, D), got {tuple(keys.shape)}, {tuple(queue.shape)}")
    if queue_ptr.numel() != 1 or queue_ptr.dtype != torch.int64:
        raise ValueError(f"queue_ptr: expected one int64, got {tuple(queue_ptr.shape)} {queue_ptr.dtype}")
    if keys.untyped_storage().data_ptr() == queue.untyped_storage().data_ptr():
        keys = keys.clone()  # the keys are rows of the queue itself
    size, dim = queue.shape
    count = keys.shape[0]
    block_dims = min(triton.next_power_of_2(dim), TILE)
    block_rows = TILE // block_dims
    grid = (triton.cdiv(min(count, size), block_rows), triton.cdiv(dim, block_dims))
    with torch.cuda.device_of(queue):  # Triton launches on the current device; CPU tensors change nothing
        _enqueue_kernel[grid](
            queue,
            queue_ptr,
            keys,
            size,
            count,
            dim,
            *queue.stride(),
            *keys.stride(),
            NORMALIZE=normalize,
            BLOCK_ROWS=block_rows,
            BLOCK_DIMS=block_dims,
            **table.UNFUSED,
        )
    # Autograd cannot see the write, and must refuse a backward that saved the old rows.
    torch.autograd.graph.increment_version([x for x in (queue, queue_ptr) if not x.is_inference()])
