"""Every formula once, in plain PyTorch: the specification that all kernels are held to.

Same names and signatures as `ssl_fast.functional`, but arguments are not checked here and the
similarity matrix is stored. These functions are also what runs where no kernel is built.

Notation: u_i = x_i / max(|x_i|, EPS), s = 1 / temperature (ssl_fast/formulas).
"""

from .image_text import clip, siglip
from .instances import instance_discrimination, instance_nce, nce_normalizer
from .queries import info_nce, moco_v3, multi_positive_info_nce
from .similarity import similarity_lse
from .supervised import supcon
from .two_views import dcl, hard_negative_nt_xent, nt_xent
from .updates import ema_update_, enqueue_, update_pair_

__all__ = [
    "clip",
    "dcl",
    "ema_update_",
    "enqueue_",
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
    "update_pair_",
]
