"""The methods by name, and the one that a recipe asks for."""

from __future__ import annotations

from ..recipes import Recipe
from .instance_discrimination import InstanceDiscrimination
from .method import Group, Method
from .moco import MoCo
from .moco_v3 import MoCoV3
from .simclr import SimCLR

# By Recipe.method, the name in each recipe's class.
METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "moco-v3": MoCoV3,
    "instdisc": InstanceDiscrimination,
}


def build(recipe: Recipe, channels: int, image_size: int, images: int, group: Group = None) -> Method:
    """Builds the method that a recipe trains, with fresh weights from torch's global generator.

    Args:
        recipe: Its method and numbers.
        channels: Of the images.
        image_size: Side of the views in pixels.
        images: Number of training images, the rows of a memory bank.
        group: The processes that share each batch; None for one process.

    Raises:
        ValueError: for an encoder or a stem that cannot be had (`encoders.create`).
    """
    method = METHODS[recipe.method]
    if issubclass(method, InstanceDiscrimination):
        return method(recipe, channels, image_size, group, images)  # type: ignore[arg-type]
    return method(recipe, channels, image_size, group)
