"""Fused contrastive losses, the momentum update and the negative queue for PyTorch, in O(N D) memory."""

from . import functional, reference
from .compat.patching import patch, unpatch
from .formulas.statistics import ContrastiveStats
from .losses import (
    ClipLoss,
    DCLLoss,
    DCLWLoss,
    HardNegativeNTXentLoss,
    InfoNCELoss,
    InstanceDiscriminationLoss,
    MoCoV3Loss,
    MultiPositiveInfoNCELoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)
from .memory.bank import MemoryBank
from .memory.flat_momentum import FlatMomentum
from .memory.momentum import cosine_momentum, ema_update_
from .memory.queue import NegativeQueue
from .operators import loading
from .operators.backends import backend
from .temperature import LearnableTemperature
from .tools.warmup import warmup
from .version import __version__ as __version__

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

loading.warn_if_missing()
