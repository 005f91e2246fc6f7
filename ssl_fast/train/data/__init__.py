"""Data sets, their batches, and the random views that are drawn of the images.

`Batches` is in batches.py, which needs Pillow and torchvision; what is offered here needs neither.
"""

from .batch_augmentation import Augment
from .datasets import Dataset, FolderDataset, load

__all__ = ["Dataset", "FolderDataset", "load", "Augment"]
