"""The circular queue of negatives (MoCo, He et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import backends, checks, reference, rows


class NegativeQueue(nn.Module):
    """The last `size` keys, written round and round; correct for any batch size.

    size: rows K. dim: columns D. dtype: of the stored rows. seed: of the first, random rows; None
    draws from torch's global generator.

    Buffers `queue` (K, D), unit rows at the start, and `queue_ptr` (1,) int64, the row written
    next. Both are in the state dict, so a resumed run keeps its negatives.
    Raises ValueError where size or dim is below 1, TypeError for another dtype than a float.
    """

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32, seed: int | None = None):
        super().__init__()
        checks.sizes(size=size, dim=dim)
        checks.float_dtype("dtype", dtype)
        self.register_buffer("queue", rows.random_unit_rows(size, dim, seed).to(dtype))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def enqueue_(self, keys: Tensor, normalize: bool = False) -> None:
        """Writes key j to row (queue_ptr + j) mod K and advances the pointer, in place.

        keys: (B, D) of any float dtype, any B. The loss takes the queue's rows as they are: give unit
            rows, or normalize=True, which writes keys / max(|key|, 1e-12).
        With B > K the last K keys stay. No device sync.
        Raises ValueError or TypeError, before anything is written, for keys that do not fit.
        """
        queue, queue_ptr = self.queue, self.queue_ptr  # found once: a module looks its buffers up
        checks.embeddings("keys", keys)
        if keys.shape[1] != queue.shape[1]:
            raise ValueError(f"keys: expected {queue.shape[1]} columns as the queue, got {tuple(keys.shape)}")
        checks.same_device("keys", keys, "the queue", queue)
        if backends.choose("enqueue_", keys.device.type) == "reference":
            reference.enqueue_(queue, queue_ptr, keys, normalize)
        else:
            torch.ops.ssl_fast.enqueue_(queue, queue_ptr, keys, normalize)

    def extra_repr(self) -> str:
        return f"size={self.queue.shape[0]}, dim={self.queue.shape[1]}, dtype={self.queue.dtype}"
