"""The circular queue of negatives (MoCo, He et al. 2020)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import checks, reference
from ..formulas.rows import random_unit_rows
from ..operators import backends
from ..parallel.collectives import counts_of, gather
from ..parallel.group import Ring, check_group

if TYPE_CHECKING:
    from ..annotations import Group


class NegativeQueue(nn.Module):
    """The last `size` keys, written round and round; correct for any batch size.

    size: rows K. dim: columns D. dtype: of the stored rows. seed: of the first, random rows; None
    draws from torch's global generator. ids: whether each key has an id, of its image, so that
    `functional.info_nce(..., exclude=(ids, queue.queue_ids))` leaves keys of the query's own image out.

    Buffers `queue` (K, D), unit rows at the start, and `queue_ptr` (1,) int64, the row written
    next; with ids `queue_ids` (K,) int64, -1 at the start. All are in the state dict, so a resumed run
    keeps its negatives. A queue of the shape (D, K), as the original MoCo code saves it, is loaded transposed, with a
    warning; where K = D it cannot be told and is taken as (K, D).
    Raises ValueError where size or dim is below 1, TypeError for another dtype than a float.
    """

    queue: Tensor
    queue_ptr: Tensor
    queue_ids: Tensor | None

    def __init__(
        self, size: int, dim: int, dtype: torch.dtype = torch.float32, seed: int | None = None, ids: bool = False
    ):
        super().__init__()
        checks.sizes(size=size, dim=dim)
        checks.float_dtype("dtype", dtype)
        checks.generator_seed(seed)
        checks.flags(ids=ids)
        self.register_buffer("queue", random_unit_rows(size, dim, seed).to(dtype))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("queue_ids", torch.full((size,), -1) if ids else None)

    @torch.no_grad()
    def enqueue_(self, keys: Tensor, normalize: bool = False, ids: Tensor | None = None, group: Group = None) -> None:
        """Writes key j to row (queue_ptr + j) mod K and advances the pointer, in place.

        keys: (B, D) of any float dtype, any B. The loss takes the queue's rows as they are: give unit
            rows, or normalize=True, which writes keys / max(|key|, 1e-12).
        ids: (B,) integers, of a queue that has ids. With B > K the last K keys stay. No device sync.
        group: a process group, whose ranks all write the keys of all in the order of the ranks: their queues
            stay the same. B may differ.
        Raises ValueError or TypeError, before anything is written, for keys that do not fit.
        """
        queue, queue_ptr = self.queue, self.queue_ptr  # found once: a module looks its buffers up
        checks.embeddings("keys", keys)
        checks.flags(normalize=normalize)
        if keys.shape[1] != queue.shape[1]:
            raise ValueError(f"keys: expected {queue.shape[1]} columns as the queue, got {tuple(keys.shape)}")
        checks.same_device("keys", keys, "the queue", queue)
        if (ids is None) != (self.queue_ids is None):
            expected = "None without" if self.queue_ids is None else "one a key with"
            raise ValueError(f"ids: expected {expected} ids in the queue, got {type(ids).__name__}")
        if ids is not None:
            checks.ids("ids", ids, keys.shape[:1], "the keys", queue)
        chosen = backends.choose("enqueue_", keys.device.type)  # which may raise: before anything is written
        if group is not None:
            check_group(group)
            if isinstance(group, Ring):
                raise TypeError("group: expected a ProcessGroup or None, got Ring")
            counts = counts_of(keys.shape[0], group, keys.device)
            keys = gather(keys, group, counts)
            ids = None if ids is None else gather(ids, group, counts)
        if ids is not None and self.queue_ids is not None:
            count, size = keys.shape[0], queue.shape[0]
            stay = torch.arange(max(count - size, 0), count, device=queue.device)
            self.queue_ids.index_copy_(0, (queue_ptr + stay) % size, ids[stay].long())
        if chosen == "reference":
            reference.enqueue_(queue, queue_ptr, keys, normalize)
        elif chosen == "triton":
            torch.ops.ssl_fast.triton_enqueue_(queue, queue_ptr, keys, normalize)
        else:
            torch.ops.ssl_fast.enqueue_(queue, queue_ptr, keys, normalize)

    @classmethod
    def _over(cls, queue: Tensor, queue_ptr: Tensor) -> NegativeQueue:
        """A queue of these tensors themselves, (K, D) and (1,): for rows that are kept under other names."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.queue, made.queue_ptr, made.queue_ids = queue, queue_ptr, None
        return made

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        name = f"{prefix}queue"
        stored = state_dict.get(name)
        size, dim = self.queue.shape
        if isinstance(stored, Tensor) and stored.shape == (dim, size) != (size, dim):
            message = f"{name}: ({dim}, {size}), as the original MoCo code saves it, is loaded transposed"
            warnings.warn(message, stacklevel=2)
            state_dict[name] = stored.T  # of a copy, which load_state_dict makes
        pointer = state_dict.get(f"{prefix}queue_ptr")
        if (
            isinstance(pointer, Tensor)
            and pointer.numel() == 1
            and not pointer.is_meta
            and not 0 <= int(pointer) < size
        ):
            arguments[-1].append(f"{prefix}queue_ptr: expected a row from 0 to {size - 1}, got {int(pointer)}")
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __len__(self) -> int:
        """The number of rows K."""
        return self.queue.shape[0]

    def extra_repr(self) -> str:
        return f"size={self.queue.shape[0]}, dim={self.queue.shape[1]}, dtype={self.queue.dtype}"
