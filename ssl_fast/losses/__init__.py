"""The losses as modules: each holds its options and calls the function of the same name."""

from .image_text import ClipLoss, SigLipLoss
from .instances import InstanceDiscriminationLoss
from .queries import InfoNCELoss, MoCoV3Loss, MultiPositiveInfoNCELoss
from .supervised import SupConLoss
from .two_views import DCLLoss, DCLWLoss, HardNegativeNTXentLoss, NTXentLoss

__all__ = [
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "HardNegativeNTXentLoss",
    "InfoNCELoss",
    "InstanceDiscriminationLoss",
    "MoCoV3Loss",
    "MultiPositiveInfoNCELoss",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
]
