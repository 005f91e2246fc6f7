"""The methods by name, and the one that a recipe asks for."""

from __future__ import annotations

from ..recipes import Recipe
from .instance_discrimination import InstanceDiscrimination
from .method import Group, Method
from .moco import MoCo
from .moco_v3 import MoCoV3
from .simclr import SimCLR

# By Recipe.method.
METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "moco-v3": MoCoV3,
    "instdisc": InstanceDiscrimination,
}


def build(recipe: Recipe, channels: int, image_size: int, images: int, group: Group = None) -> Method:
    """The recipe's method with fresh weights. images: of the training set."""
    method = METHODS[recipe.method]
    if issubclass(method, InstanceDiscrimination):
        return method(recipe, channels, image_size, group, images)  # type: ignore[arg-type]
    return method(recipe, channels, image_size, group)
