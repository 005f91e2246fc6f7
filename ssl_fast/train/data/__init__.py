"""Data sets, their batches, and the random views that are drawn of the images."""

from .batch_augmentation import Augment
from .batches import Batches, plain_batches
from .datasets import Dataset, FolderDataset, load

__all__ = ["Dataset", "FolderDataset", "load", "Batches", "plain_batches", "Augment"]
