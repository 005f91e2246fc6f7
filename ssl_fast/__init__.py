"""Fused contrastive losses, the momentum update and the negative queue for PyTorch, in O(N D) memory."""

from . import functional, native, reference
from .backends import backend
from .losses import InfoNCELoss, NTXentLoss
from .momentum import ema_update_
from .queue import NegativeQueue
from .reference import ContrastiveStats
from .warm import warmup

__version__ = "0.1.0"

__all__ = [
    "ContrastiveStats",
    "InfoNCELoss",
    "NTXentLoss",
    "NegativeQueue",
    "backend",
    "ema_update_",
    "functional",
    "reference",
    "warmup",
]

native.warn_if_missing()
