"""Batches that are spread over processes: what `group=` does (`batch.py` has the contract), and shuffled batch norm."""

from .collectives import gather
from .group import Ring, all_processes
from .shuffle import shuffle, unshuffle

__all__ = ["Ring", "all_processes", "gather", "shuffle", "unshuffle"]
