"""Encoders, and the methods that train them: a file a method, to be read beside its paper.

`method.py` has what the methods share and the order in which a training step calls them.
"""

from .encoders import create
from .grouped_batch_norm import GroupedBatchNorm, in_groups
from .instance_discrimination import InstanceDiscrimination
from .method import Method, Result
from .methods import METHODS, build
from .moco import MoCo
from .moco_v3 import MoCoV3
from .simclr import SimCLR

__all__ = [
    "METHODS",
    "build",
    "Method",
    "Result",
    "SimCLR",
    "MoCo",
    "MoCoV3",
    "InstanceDiscrimination",
    "create",
    "GroupedBatchNorm",
    "in_groups",
]
