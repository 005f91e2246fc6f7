"""The circular write of keys into a queue (ssl_fast.reference.enqueue_): one launch, no sync, no workspace."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements a program moves: eight a thread with four warps, two 128-bit accesses in float32.
TILE = 1024


@triton.jit(do_not_specialize=["size", "count"])  # a batch of another size is no reason to compile
def _enqueue_kernel(
    queue,  # (K, D)
    queue_ptr,  # (1,) int64
    keys,  # (B, D)
    size,  # K
    count,  # B
    dim,  # D
    queue_row_stride,
    queue_dim_stride,
    keys_row_stride,
    keys_dim_stride,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIMS: tl.constexpr,
    POINTER_BITS: tl.constexpr = 36,  # 2^35 rows, and 2^27 programs in the other bits: no device holds as many
):
    # Programs start in any order, some after others have ended, so none may store the new pointer
    # before all have read the old one. Reading it and being counted as a reader are therefore one
    # integer atomic: the high bits of queue_ptr count the readers, and the program that finds all
    # others counted stores the pointer, which clears the count. No other memory is ordered by it.
    counted = tl.atomic_add(queue_ptr, 1 << POINTER_BITS, sem="relaxed")
    pointer = (counted << (64 - POINTER_BITS)) >> (64 - POINTER_BITS)  # the low bits with their sign
    readers = (counted - pointer) >> POINTER_BITS

    # The last `size` keys stay, where writing all in turn would leave them. After this, `place`
    # wraps at most once and no two rows share one: each element is written by one program.
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
    if x.dtype == tl.float64 and queue.dtype.element_ty.primitive_bitwidth == 16:
        x = x.to(tl.float32)  # as PyTorch rounds a double to a half type
    tl.store(target, x.to(queue.dtype.element_ty), mask=inside)

    if readers == tl.num_programs(0) * tl.num_programs(1) - 1:
        end = start + rows
        tl.atomic_xchg(queue_ptr, tl.where(end >= size, end - size, end), sem="relaxed")


def enqueue_(queue: Tensor, queue_ptr: Tensor, keys: Tensor) -> None:
    """Row j of keys goes to row (ptr + j) mod K of queue; `ssl_fast.reference.enqueue_` is the same.

    queue: (K, D) and keys: (B, D), B and D at least 1, any float dtypes and strides; keys are cast
    to the queue's dtype. queue_ptr: (1,) int64. All on one device. With B > K the last K keys stay.
    queue and queue_ptr change in place, in one launch on the current stream that can be captured
    in a CUDA graph. Arguments are checked by NegativeQueue.enqueue_, not here.
    """
    size, dim = queue.shape
    count = keys.shape[0]
    block_dims = min(triton.next_power_of_2(dim), TILE)
    block_rows = TILE // block_dims
    grid = (triton.cdiv(min(count, size), block_rows), triton.cdiv(dim, block_dims))
    with torch.cuda.device_of(queue):  # Triton launches on the current device; nothing on CPU tensors
        _enqueue_kernel[grid](
            queue,
            queue_ptr,
            keys,
            size,
            count,
            dim,
            *queue.stride(),
            *keys.stride(),
            BLOCK_ROWS=block_rows,
            BLOCK_DIMS=block_dims,
            num_warps=4,
            enable_fp_fusion=True,  # no sums here, but Triton 3.9 warns where it is not set
        )
    # Autograd cannot see the write, and must refuse a backward that saved the old rows.
    torch.autograd.graph.increment_version((queue, queue_ptr))
