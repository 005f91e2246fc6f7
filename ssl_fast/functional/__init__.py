"""The losses as functions: arguments are checked here, then the chosen backend runs.

All take embeddings in float32, float64, bfloat16 or float16 of any strides and normalise them inside;
NaN or Inf in one gives NaN. They return float32 (float64 for float64 inputs), make no N x M array, give the
same bits at any thread count, and raise ValueError or TypeError for arguments that do not fit. Options that all
share, all but the temperature given by name:

temperature: a number of size 1e-8 to 1e8, a 0-D tensor, which gets its gradient (a value outside gives
    NaN), or a module that returns one: `LearnableTemperature`. Keep a learnt one on the embeddings' device: the
    gradient of a CPU tensor is copied back to it, for which each backward pass waits. Nothing else here is copied
    between host and device or waits for one (but `group=`, whose ranks tell each other how many rows they have).
reduction: "mean" or "sum" over the rows' losses, or "none", the rows themselves.
normalize: False takes the rows as they are.
weights: one float an image, by which its losses are multiplied; "mean" divides by the sum of the weights.
return_stats: also return `ContrastiveStats` (top-1, top-5, mean similarities), which are not weighted.
group: the processes over which the batch is spread (`ssl_fast.parallel`).

Each has the same function in plain PyTorch in `ssl_fast.reference`. docs/losses.md compares them.
"""

from .image_text import clip, siglip
from .instances import instance_discrimination, instance_nce, nce_normalizer
from .queries import info_nce, moco_v3, multi_positive_info_nce
from .similarity import similarity_lse
from .supervised import supcon
from .two_views import dcl, hard_negative_nt_xent, nt_xent

__all__ = [
    "clip",
    "dcl",
    "hard_negative_nt_xent",
    "info_nce",
    "instance_discrimination",
    "instance_nce",
    "moco_v3",
    "multi_positive_info_nce",
    "nce_normalizer",
    "nt_xent",
    "siglip",
    "similarity_lse",
    "supcon",
]
