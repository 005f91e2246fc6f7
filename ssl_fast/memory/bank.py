"""The memory bank of instance discrimination (Wu et al. 2018): a row for every image of the data set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import checks
from ..formulas.rows import random_unit_rows, unit_rows


class MemoryBank(nn.Module):
    """One unit row for each of `size` images, moved towards the image's new embedding when it is seen.

    size: rows n. dim: columns D. momentum: share of the old row that stays (0.5 in the original). dtype: of the
    stored rows. seed: of the first, random rows; None draws from torch's global generator.

    Buffer `bank` (n, D), in the state dict. Raises ValueError or TypeError for values that do not fit.
    """

    bank: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        seed: int | None = None,
    ):
        super().__init__()
        checks.sizes(size=size, dim=dim)
        checks.float_dtype("dtype", dtype)
        checks.momentum(momentum)
        checks.generator_seed(seed)
        self.momentum = momentum
        self.register_buffer("bank", random_unit_rows(size, dim, seed).to(dtype))

    @torch.no_grad()
    def update_(self, index: Tensor, features: Tensor) -> None:
        """bank[index_i] = normalize(momentum * bank[index_i] + (1 - momentum) * normalize(features_i)), in place.

        index: (N,) integers, each image once. features: (N, D) of any float dtype. After the backward pass of a
        loss that read the bank. No device sync.
        Raises ValueError or TypeError, before anything is written, for arguments that do not fit.
        """
        checks.embeddings("features", features)
        if features.shape[1] != self.bank.shape[1]:
            raise ValueError(
                f"features: expected {self.bank.shape[1]} columns as the bank, got {tuple(features.shape)}"
            )
        checks.same_device("features", features, "the bank", self.bank)
        checks.ids("index", index, features.shape[:1], "features", features)
        checks.places("index", index, self.bank.shape[0])
        index, new = index.long(), unit_rows(features)
        mixed = self.momentum * self.bank.index_select(0, index).to(new.dtype) + (1 - self.momentum) * new
        self.bank.index_copy_(0, index, unit_rows(mixed).to(self.bank.dtype))

    def __len__(self) -> int:
        """The number of images n."""
        return self.bank.shape[0]

    def extra_repr(self) -> str:
        return f"size={self.bank.shape[0]}, dim={self.bank.shape[1]}, momentum={self.momentum}, dtype={self.bank.dtype}"
