"""Drop-ins for lightly 1.6: NT-Xent with or without its memory bank, DCL, DCLW, the bank, the momentum update.

    from ssl_fast.compat.lightly import NTXentLoss  # was: from lightly.loss import NTXentLoss

Losses of half inputs are float32. Embeddings of two dtypes are promoted. Shapes that do not fit raise ValueError.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional as losses
from ..formulas.loss_parts import von_mises_fisher_weights
from ..formulas.rows import random_unit_rows, unit_rows, upcast
from ..memory.momentum import ema_update_
from ..memory.queue import NegativeQueue
from ..parallel.batch import batch_of
from ..parallel.collectives import gather
from ..parallel.group import all_processes
from .inputs import one_dtype, scalar

PACKAGE = "lightly"
DISTRIBUTION = "lightly"
VERSIONS = ("1.6",)
REPLACES = {
    "lightly.loss.ntx_ent_loss": ("NTXentLoss",),
    "lightly.loss.dcl_loss": ("DCLLoss", "DCLWLoss", "negative_mises_fisher_weights"),
    "lightly.models.modules.memory_bank": ("MemoryBankModule",),
    "lightly.models.utils": ("update_momentum",),
}

NO_DISTRIBUTED = (
    "gather_distributed is True but torch.distributed is not available. Please set gather_distributed=False or "
    "install a torch version with distributed support."
)


class MemoryBankModule(NegativeQueue):
    """Rows of earlier batches: lightly's bank, a `NegativeQueue` under its names.

    size: (K, D), or 0 for none. gather_distributed: whether all ranks' rows are written, on every rank.
    feature_dim_first: whether the bank is returned as (D, K).
    circular: ours. False writes as lightly does: a batch that reaches the end of the bank loses what is beyond it,
        and the next begins at row 0. True writes round and round, as `NegativeQueue` does, all rows of any batch.

    Buffers `bank` (K, D) and `bank_ptr` (1,). Unlike lightly's they are in the state dict, so a resumed run keeps its
    negatives; a state dict of lightly's, which has neither, is loaded too, and leaves the bank as it is.
    Raises ValueError for another size.
    """

    bank: Tensor
    bank_ptr: Tensor
    circular = False  # of lightly's own objects too, unpickled while patched

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
        *,
        circular: bool = False,
    ):
        nn.Module.__init__(self)  # of the queue's names there are only properties
        sizes = (size,) if isinstance(size, int) else tuple(size)
        if any(x < 0 for x in sizes):
            raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
        if isinstance(size, int) and size > 0:
            raise ValueError(
                f"Memory bank size 'size={size}' does not specify the feature dimension. Set it with "
                f"'size=({size}, dim)', or pass 'size=0' to disable the memory bank."
            )
        if sizes != (0,) and len(sizes) != 2:
            raise ValueError(
                f"Illegal memory bank size {size}, expected a (num_features, dim) tuple, or 'size=0' to disable the "
                "memory bank."
            )
        self.size: tuple[int, ...] = sizes
        self.gather_distributed = gather_distributed
        self.feature_dim_first = feature_dim_first
        self.circular = circular
        bank = torch.empty(sizes) if 0 in sizes else random_unit_rows(sizes[0], sizes[-1], None).float()
        self.register_buffer("bank", bank, persistent=sizes[0] > 0)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=sizes[0] > 0)

    @property
    def queue(self) -> Tensor:  # type: ignore[override]
        return self.bank

    @property
    def queue_ptr(self) -> Tensor:  # type: ignore[override]
        return self.bank_ptr

    @property
    def queue_ids(self) -> None:  # type: ignore[override]
        return None

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """(output, a copy of the bank as it was), or (output, None) without a bank; labels are ignored.

        output: (N, D), written to the bank as it is where update is True.
        """
        if self.size[0] == 0:
            return output, None
        bank = self.bank.detach().clone()
        if update:
            self._dequeue_and_enqueue(output)
        return output, bank.transpose(0, -1) if self.feature_dim_first else bank

    @torch.no_grad()
    def _dequeue_and_enqueue(self, batch: Tensor) -> None:
        """Without a device sync: the pointer is not read."""
        bank, pointer, size = self.bank, self.bank_ptr, self.size[0]
        batch, group = batch.to(bank.device), _group(self.gather_distributed)
        if self.circular:
            self.enqueue_(batch, group=group)
            return
        if group is not None:
            batch = gather(batch, group)
        count = batch.shape[0]
        places = pointer + torch.arange(min(count, size), device=bank.device)
        inside, places = places < size, places % size
        # Rows beyond the end are dropped: what is at their places is written back.
        rows = torch.where(inside[:, None], batch[: len(places)].to(bank.dtype), bank.index_select(0, places))
        bank.index_copy_(0, places, rows)
        pointer.copy_(torch.where(pointer + count >= size, 0, pointer + count))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        names = [f"{prefix}{name}" for name in ("bank", "bank_ptr")]
        saved = state_dict.get(names[0])
        if isinstance(saved, Tensor) and saved.shape != self.bank.shape:
            message = f"{names[0]}: of shape {tuple(saved.shape)}, is not loaded, the bank is {tuple(self.bank.shape)}"
            warnings.warn(message, stacklevel=2)
            for name in names:  # of the copy that load_state_dict makes
                state_dict.pop(name, None)
        if self.size[0] and not any(name in state_dict for name in names):
            # lightly saves neither.
            state_dict.update(zip(names, (self.bank, self.bank_ptr), strict=True))
        nn.Module._load_from_state_dict(self, state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        return f"size={self.size}, gather_distributed={self.gather_distributed}, circular={self.circular}"


class NTXentLoss(nn.Module):
    """NT-Xent (SimCLR) or, with a bank, MoCo's loss: equals lightly's, without its matrix and its copy of the bank.

    Without a bank the mean over the 2N rows of `functional.nt_xent`. With one the mean over N of `functional.info_nce`
    of out0 against out1 and the bank as it was; afterwards out1's unit rows are written where out0 requires a gradient.
    gather_distributed: without a bank the other ranks' rows are negatives too, with one they are written to it.
    circular: ours, of the bank (`MemoryBankModule`). A bank follows the embeddings to their device.
    `cross_entropy` is there as in lightly and is not used.
    Raises ValueError for |temperature| < 1e-8, an illegal bank size, or without torch.distributed for the gather.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        *,
        circular: bool = False,
    ):
        super().__init__()
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed, circular=circular)
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        self.cross_entropy = nn.CrossEntropyLoss(reduction="mean")
        self.eps = 1e-8
        if abs(self.temperature) < self.eps:
            raise ValueError(f"Illegal temperature: abs({self.temperature}) < 1e-8")
        if gather_distributed and not dist.is_available():
            raise ValueError(NO_DISTRIBUTED)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1: (N, D), row i of both from the same image."""
        out0, out1 = one_dtype(out0, out1)
        temperature, bank = scalar(self.temperature), self.memory_bank
        update = out0.requires_grad and torch.is_grad_enabled()
        if type(bank).forward is not MemoryBankModule.forward or "forward" in vars(bank) or not bank.feature_dim_first:
            # Another bank than the loss made: it is asked, as lightly asks it.
            _, columns = bank(unit_rows(out1), update=update)
            if columns is not None:
                pointer = torch.zeros(1, dtype=torch.int64, device=out0.device)
                negatives = NegativeQueue._over(columns.T.to(out0.device), pointer)
                return losses.info_nce(out0, out1, negatives, temperature)
        elif bank.size[0]:
            if bank.bank.device != out0.device:
                bank.to(out0.device)
            loss = losses.info_nce(out0, out1, bank, temperature)
            if update:
                bank._dequeue_and_enqueue(unit_rows(out1.detach()))
            return loss
        return losses.nt_xent(out0, out1, temperature, group=_group(self.gather_distributed))


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """DCLW's weights (N,), 2 - N softmax(<out0_i, out1_i> / sigma), without gradient; float32 for half inputs.

    out0, out1: (N, D), normalised. Equals lightly's, without the warning of its copy.
    """
    return von_mises_fisher_weights((upcast(out0.detach()) * upcast(out1.detach())).sum(1), sigma)


class DCLLoss(nn.Module):
    """Decoupled contrastive loss (Yeh et al. 2022, eq. 6): equals lightly's, as `functional.dcl`.

    weight_fn: None, or a function of both normalised views, called once for each direction, that gives the weights of
        the positives (N,), with a gradient where it has one. gather_distributed: negatives of all ranks.
    Raises ValueError without torch.distributed for the gather; in forward for temperature 0, and for a single image,
    which has no negatives (lightly's loss is -Inf).
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        if gather_distributed and not dist.is_available():
            raise ValueError(NO_DISTRIBUTED)

    def __init_subclass__(cls) -> None:
        if "_loss" in vars(cls):
            raise TypeError(f"{cls.__name__}._loss: no such method is called here; derive from lightly's own DCLLoss")

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1: (N, D), row i of both from the same image."""
        out0, out1 = one_dtype(out0, out1)
        temperature = scalar(self.temperature)
        group = _group(self.gather_distributed)
        sigma = _sigma_of(self.weight_fn) if group is None else None  # the function's softmax is over the rank's rows
        loss = losses.dcl(out0, out1, temperature, sigma=sigma, group=group)
        if not self.weight_fn or sigma is not None:
            return loss
        # The loss is linear in the weights of the positives.
        u0, u1 = unit_rows(out0), unit_rows(out1)
        weights = self.weight_fn(u0, u1) + self.weight_fn(u1, u0)
        rows = (2 - weights) * (u0 * u1).sum(1) / (2 * temperature)
        return loss + batch_of(group, out0).reduce(rows, "mean")


class DCLWLoss(DCLLoss):
    """`DCLLoss` with `negative_mises_fisher_weights` of this sigma (Yeh et al. 2022, eq. 7): equals lightly's."""

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False):
        super().__init__(temperature, functools.partial(negative_mises_fisher_weights, sigma=sigma), gather_distributed)


def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """model_ema's parameters become m model_ema + (1 - m) model, in place and in one pass; buffers stay.

    Parameters are paired by their order. Raises ValueError for another number of them or other shapes, and for m
    outside 0 to 1, before anything is written.
    """
    ema_update_(model_ema.parameters(), model.parameters(), m)


def _group(gather_distributed: bool) -> dist.ProcessGroup | None:
    """The processes to gather from, None for this one alone."""
    return all_processes() if gather_distributed else None


def _sigma_of(weight_fn: Any) -> float | None:
    """The sigma of DCLW's weights, which the loss computes itself; None for other functions."""
    if not isinstance(weight_fn, functools.partial) or weight_fn.func is not negative_mises_fisher_weights:
        return None
    sigma = weight_fn.keywords.get("sigma")
    return sigma if isinstance(sigma, (int, float)) and sigma >= 1e-8 and not weight_fn.args else None
