"""Drop-in for facebookresearch/moco (commit 7397dfe): its model with queue, momentum encoder and shuffled batch norm.

from ssl_fast.compat.moco import MoCo  # was: from moco.builder import MoCo
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import functional
from ..formulas.rows import unit_rows
from ..memory.momentum import ema_update_
from ..memory.queue import NegativeQueue
from ..parallel.group import all_processes
from ..parallel.shuffle import shuffle, unshuffle

PACKAGE = "moco"
DISTRIBUTION = None
VERSIONS = ()
REPLACES = {"moco.builder": ("MoCo",)}


class MoCo(nn.Module):
    """MoCo v1, with mlp v2 (He et al. 2020; Chen et al. 2020): equals facebookresearch/moco's builder.

    base_encoder: called twice with num_classes=dim; with mlp it has a linear layer `fc`, which gets another before it.
    dim, K: columns and number of the keys in the queue. m: momentum of the key encoder. T: temperature.

    A step: queries are encoded, the key encoder is updated, images are shuffled over the ranks, keys encoded and
    brought back, the loss taken against the queue as it was, then all ranks' keys are written. Batch norm's running
    statistics are no part of the update. Unlike the original, it runs on the CPU, on one device and under
    DistributedDataParallel; the queue is written round and round, with any batch size, which is the original's
    wherever that accepts the size; the update is in place. On one process the shuffle changes no batch norm but those
    in groups: `ssl_fast.train.models.in_groups(model.encoder_q, 4)`, and the same of encoder_k.

    State dict: encoder_q.*, encoder_k.*, queue (dim, K), a view of the keys as rows, and queue_ptr (1,), so that
    checkpoints are exchanged with the original.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
    ):
        super().__init__()
        self.K = K
        self.m = m
        self.T = T
        self.encoder_q = base_encoder(num_classes=dim)
        self.encoder_k = base_encoder(num_classes=dim)
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                last: Any = encoder.fc
                width = last.weight.shape[1]
                encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
        with torch.no_grad():
            for query, key in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
                key.copy_(query)
                key.requires_grad = False
        # Drawn and normalised as (dim, K): a seed gives the original's bits.
        self.register_buffer("queue", F.normalize(torch.randn(dim, K), dim=0).T.contiguous().T)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """A step's (logits (N, 1 + K), positives first, over T; labels (N,), all 0), for the cross entropy.

        im_q, im_k: (N, ...), two views of each image.
        """
        q, k = map(unit_rows, self._encode(im_q, im_k))
        queue = self.queue.clone()  # autograd keeps it, and the keys are written before the backward pass
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.to(q.dtype)], 1) / self.T
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device)

    def loss(self, im_q: Tensor, im_k: Tensor) -> Tensor:
        """The same step's loss, cross_entropy(*self(im_q, im_k)), without the logits: ours, `functional.info_nce`.

        DistributedDataParallel calls forward: before it wraps the model, `model.forward = model.loss`.
        """
        q, k = self._encode(im_q, im_k)
        loss = functional.info_nce(q, k.to(q.dtype), self._rows(), self.T)
        self._dequeue_and_enqueue(unit_rows(k))
        return loss

    def _encode(self, im_q: Tensor, im_k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (N, dim), not normalised, with the update between them."""
        q = self.encoder_q(im_q)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            group = all_processes()
            if group is None:
                order = torch.randperm(len(im_k), device=im_k.device)
                return q, self.encoder_k(im_k[order])[order.argsort()]
            here, order = shuffle(im_k, group)
            return q, unshuffle(self.encoder_k(here), order, group)

    def _momentum_update_key_encoder(self) -> None:
        ema_update_(self.encoder_k.parameters(), self.encoder_q.parameters(), self.m)

    def _dequeue_and_enqueue(self, keys: Tensor) -> None:
        """keys: the rank's unit rows (N, dim); those of all ranks are written."""
        self._rows().enqueue_(keys, group=all_processes())

    def _rows(self) -> NegativeQueue:
        """The same memory as the queue (K, dim) that losses read."""
        return NegativeQueue._over(self.queue.T, self.queue_ptr)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if not self.queue.T.is_contiguous():  # load_state_dict(assign=True) takes the file's tensor
            self.queue = self.queue.T.contiguous().T
