"""Every formula once, in plain PyTorch: the specification that all kernels are held to.

Same names and signatures as `ssl_fast.functional`, but arguments are not checked here and the
similarity matrix is stored. These functions are also what runs where no kernel is built.

Notation: u_i = x_i / max(|x_i|, EPS), s = 1 / temperature (rows.py).
"""

from .instances import instance_discrimination, instance_nce, nce_of
from .pairs import clip, info_nce, moco_v3, multi_positive_info_nce, siglip
from .primitive import normalized_negatives, similarity_lse, symmetric_sum
from .updates import ema_update_, enqueue_, update_pair_
from .views import dcl, hard_negative_log_sum, hard_negative_nt_xent, nt_xent, supcon, von_mises_fisher_weights

__all__ = [
    "clip",
    "dcl",
    "ema_update_",
    "enqueue_",
    "hard_negative_log_sum",
    "hard_negative_nt_xent",
    "info_nce",
    "instance_discrimination",
    "instance_nce",
    "moco_v3",
    "multi_positive_info_nce",
    "nce_of",
    "normalized_negatives",
    "nt_xent",
    "siglip",
    "similarity_lse",
    "supcon",
    "symmetric_sum",
    "update_pair_",
    "von_mises_fisher_weights",
]
