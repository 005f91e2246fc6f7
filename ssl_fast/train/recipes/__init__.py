"""What each method is trained with, a file a method: every number as published, with its source beside it.

RECIPES has all of them by the name that the command line takes: `ssl-fast train NAME`, `ssl-fast recipes NAME`.

    import dataclasses
    from ssl_fast.train.recipes import RECIPES

    mine = dataclasses.replace(RECIPES["moco-v2"], epochs=100, batch_size=512)
"""

from .base import Recipe, TwoViewRecipe
from .instance_discrimination import InstanceDiscriminationRecipe
from .linear_protocol import LinearProtocol
from .moco_v1 import MoCoV1Recipe
from .moco_v2 import MoCoV2Recipe
from .moco_v3 import MoCoV3Recipe, MoCoV3ViTRecipe
from .simclr import SimCLRCIFARRecipe, SimCLRRecipe
from .small import SMALL_RECIPES
from .view import View

__all__ = [
    "RECIPES",
    "Recipe",
    "TwoViewRecipe",
    "SimCLRRecipe",
    "SimCLRCIFARRecipe",
    "MoCoV1Recipe",
    "MoCoV2Recipe",
    "MoCoV3Recipe",
    "MoCoV3ViTRecipe",
    "InstanceDiscriminationRecipe",
    "View",
    "LinearProtocol",
]

RECIPES: dict[str, Recipe] = {
    "simclr": SimCLRRecipe(),
    "simclr-cifar": SimCLRCIFARRecipe(),
    "moco-v1": MoCoV1Recipe(),
    "moco-v2": MoCoV2Recipe(),
    "moco-v3": MoCoV3Recipe(),
    "moco-v3-vit": MoCoV3ViTRecipe(),
    "instdisc": InstanceDiscriminationRecipe(),
    **SMALL_RECIPES,
}
