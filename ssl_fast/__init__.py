"""Fused contrastive losses, the momentum update and the negative queue for PyTorch, in O(N D) memory."""

from . import functional, native, reference
from .backends import backend
from .bank import MemoryBank
from .compat.patching import patch, unpatch
from .flat_momentum import FlatMomentum
from .losses import (
    ClipLoss,
    DCLLoss,
    DCLWLoss,
    HardNegativeNTXentLoss,
    InfoNCELoss,
    InstanceDiscriminationLoss,
    LearnableTemperature,
    MoCoV3Loss,
    MultiPositiveInfoNCELoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)
from .momentum import cosine_momentum, ema_update_
from .queue import NegativeQueue
from .rows import ContrastiveStats
from .warm import warmup

__version__ = "0.1.0"

__all__ = [
    "ClipLoss",
    "ContrastiveStats",
    "DCLLoss",
    "DCLWLoss",
    "FlatMomentum",
    "HardNegativeNTXentLoss",
    "InfoNCELoss",
    "InstanceDiscriminationLoss",
    "LearnableTemperature",
    "MemoryBank",
    "MoCoV3Loss",
    "MultiPositiveInfoNCELoss",
    "NTXentLoss",
    "NegativeQueue",
    "SigLipLoss",
    "SupConLoss",
    "backend",
    "cosine_momentum",
    "ema_update_",
    "functional",
    "patch",
    "reference",
    "unpatch",
    "warmup",
]

native.warn_if_missing()
