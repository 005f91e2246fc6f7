"""Checkpoints of facebookresearch/moco, written and read: a run goes on there, or comes from there.

Such a file holds `epoch`, `arch`, `state_dict` and `optimizer`. Its tensors are those of moco/builder.py within
DistributedDataParallel: `module.encoder_q.*` and `module.encoder_k.*`, each a ResNet of torchvision whose `fc` is the
projection head, `module.queue` (D, K) and `module.queue_ptr` (1,).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...memory.queue import NegativeQueue
from .. import files
from ..recipes import RECIPES, MoCoV1Recipe, Recipe
from .encoders import RESNETS, create, mlp

RECIPE_OF_LAYERS = {1: "moco-v1", 2: "moco-v2"}  # by the layers of the projection head
QUEUE_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
LISTED = 12  # tensors that an error names; a ResNet has hundreds


class Original(nn.Module):
    """The tensors of moco/builder.py's MoCo under their names; on the meta device, for names and shapes alone.

    arch: a name of RESNETS. dim, size: of the queue. layers: of the head, 1 or 2.
    """

    def __init__(self, arch: str, dim: int, size: int, layers: int):
        super().__init__()
        with torch.device("meta"):
            for name in ("encoder_q", "encoder_k"):
                encoder, features = create(arch, channels=3, stem="imagenet", image_size=224)
                head = mlp(features, features, dim, layers)
                encoder.fc = head if layers == 2 else head[0]
                self.add_module(name, encoder)
            self.register_buffer("queue", torch.empty(dim, size))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))


def resnet_name(recipe: Recipe, channels: int) -> str:
    """The ResNet of torchvision that the recipe's encoder is, weight for weight; timm's namesakes are the same.

    Raises ValueError, naming the field and saying why, for an encoder that torchvision's own class cannot hold.
    """
    name = recipe.encoder.removeprefix("timm/")
    if name not in RESNETS:
        raise ValueError(
            f"encoder: {recipe.encoder} is none of torchvision's {', '.join(RESNETS)}; the format safetensors takes any"
        )
    if recipe.stem != "imagenet":
        raise ValueError(
            f"stem: torchvision's {name} begins with a 7x7 convolution and pooling, this one with the {recipe.stem} "
            "stem's 3x3 convolution; the format safetensors takes any"
        )
    if channels != 3:
        raise ValueError(f"channels: torchvision's {name} takes 3, this one {channels}; the format timm takes any")
    return name


def to_moco(contents: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of moco-v1 or moco-v2, as `main_moco.py --resume` takes it: epoch, arch, state_dict, optimizer.

    contents: of a checkpoint: its recipe, channels, model and epoch. All values stay bit for bit; the queue, (K, D)
    here, becomes (D, K). The optimiser is SGD with the recipe's numbers, its momentum empty: its buffers stay behind.
    Raises ValueError, naming the field, for what that code has no model for: another method, an encoder without
    a `resnet_name`, another head than one layer, or two of the features' width, without batch norm; and for a
    model that does not fit its recipe, with the tensors in question.
    """
    recipe = contents["recipe"]
    if not isinstance(recipe, MoCoV1Recipe):
        raise ValueError(f"recipe: the format moco is of moco-v1 and moco-v2, got {recipe.method}")
    arch = resnet_name(recipe, contents["channels"])
    if recipe.head_layers not in RECIPE_OF_LAYERS or recipe.head_batch_norm != "none":
        raise ValueError(
            "head_layers: the format moco is of a head of 1 or 2 layers without batch norm, "
            f"got {recipe.head_layers} with head_batch_norm {recipe.head_batch_norm}"
        )
    original = Original(arch, recipe.projection_dim, recipe.queue_size, recipe.head_layers)
    features = original.get_parameter(f"encoder_q.fc.{'0.' * (recipe.head_layers - 1)}weight").shape[1]
    if recipe.head_layers == 2 and recipe.head_width not in (0, features):
        raise ValueError(f"head_width: the format moco is of the features' {features}, got {recipe.head_width}")
    state = _renamed(contents["model"], _prefixes(recipe.head_layers))
    if "queue" in state:
        state["queue"] = state["queue"].T
    _check_tensors(state, original, "model")
    sgd = torch.optim.SGD(
        original.parameters(),
        recipe.scaled_learning_rate,
        momentum=recipe.optimizer_momentum,
        weight_decay=recipe.weight_decay,
    )
    return {
        "epoch": contents["epoch"],
        "arch": arch,
        "state_dict": {f"module.{name}": own_storage(tensor) for name, tensor in state.items()},
        "optimizer": sgd.state_dict(),
    }


def from_moco(moco: Mapping[str, Any]) -> dict[str, Any]:
    """What a facebookresearch/moco checkpoint says of a run, under the names of a checkpoint of ours.

    moco: epoch, arch and state_dict, with or without DistributedDataParallel's `module.`; the optimizer is not read.
    Returns recipe_name, recipe, model (its state dict), epoch, channels and image_size. The recipe is moco-v1's or
    moco-v2's by the head in the file, with its encoder, projection_dim, queue_size and queue_dtype; what a file does
    not say (temperature, schedule) is as published. A file without a key encoder gives a copy of the query encoder,
    one without a queue the random queue of a new run, each with a warning.
    Raises ValueError that lists the tensors that are missing, unknown or of another shape or kind.
    """
    if not moco.keys() >= {"epoch", "arch", "state_dict"} or not isinstance(moco["state_dict"], Mapping):
        raise ValueError(f"moco: expected epoch, arch and state_dict, got {', '.join(map(str, moco)) or 'nothing'}")
    arch, epoch = moco["arch"], moco["epoch"]
    if arch not in RESNETS:
        raise ValueError(f"arch: expected one of {', '.join(RESNETS)}, got {arch!r}")
    if not isinstance(epoch, int) or epoch < 0:
        raise ValueError(f"epoch: expected the number of complete epochs, got {epoch!r}")
    state = dict(moco["state_dict"])
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    layers, dim = _head(state)
    recipe: Any = RECIPES[RECIPE_OF_LAYERS[layers]]
    size = _complete(state, recipe, dim)
    _check_tensors(state, Original(arch, dim, size, layers), "state_dict")
    _check_queue(state["queue"], state["queue_ptr"])
    state["queue"] = state["queue"].T
    queue_dtype = QUEUE_DTYPES[state["queue"].dtype]
    recipe = dataclasses.replace(recipe, encoder=arch, projection_dim=dim, queue_size=size, queue_dtype=queue_dtype)
    theirs_to_ours = [(theirs, ours) for ours, theirs in _prefixes(layers)]
    return {
        "recipe_name": RECIPE_OF_LAYERS[layers],
        "recipe": recipe,
        "model": {name: own_storage(tensor) for name, tensor in _renamed(state, theirs_to_ours).items()},
        "epoch": epoch,
        "channels": 3,
        "image_size": recipe.image_size,
    }


def import_moco(path: str | Path) -> dict[str, Any]:
    """`from_moco` of a file, its tensors on the CPU. No code in the file is run.

    Raises FileNotFoundError where there is none, ValueError where it is no such checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    moco = files.read_tensors(path)
    if not isinstance(moco, Mapping):
        raise ValueError(f"{path}: expected a checkpoint of facebookresearch/moco, got {type(moco).__name__}")
    try:
        return from_moco(moco)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def own_storage(tensor: Tensor) -> Tensor:
    """A contiguous copy: a view would be saved with all of the storage that it looks at."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _prefixes(layers: int) -> list[tuple[str, str]]:
    """How the names begin, ours and theirs; the first that fits counts."""
    first = "0." if layers == 1 else ""  # theirs is then the layer itself
    return [
        (f"head.{first}", "encoder_q.fc."),
        (f"key_head.{first}", "encoder_k.fc."),
        ("encoder.", "encoder_q."),
        ("key_encoder.", "encoder_k."),
        ("queue.", ""),
    ]


def _renamed(state: Mapping[str, Any], prefixes: list[tuple[str, str]]) -> dict[str, Any]:
    def renamed(name: str) -> str:
        for before, after in prefixes:
            if name.startswith(before):
                return after + name.removeprefix(before)
        return name

    return {renamed(name): tensor for name, tensor in state.items()}


def _head(state: Mapping[str, Any]) -> tuple[int, int]:
    """The layers of the head and the columns of its output."""
    for layers, name in ((1, "encoder_q.fc.weight"), (2, "encoder_q.fc.2.weight")):
        weight = state.get(name)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            return layers, weight.shape[0]
    raise ValueError(
        "state_dict: expected a matrix encoder_q.fc.weight (MoCo v1) or encoder_q.fc.2.weight (v2), "
        f"got {_list(sorted(map(str, state)))}"
    )


def _complete(state: dict[str, Any], recipe: MoCoV1Recipe, dim: int) -> int:
    """Adds, in place and with a warning, a key encoder and a queue to a file that has none; the queue's size."""
    if not any(name.startswith("encoder_k.") for name in state):
        warnings.warn("encoder_k: not in the file, begins as a copy of encoder_q", stacklevel=3)
        queries = {name.removeprefix("encoder_q."): x for name, x in state.items() if name.startswith("encoder_q.")}
        state.update({f"encoder_k.{name}": tensor for name, tensor in queries.items()})
    if "queue" not in state and "queue_ptr" not in state:
        warnings.warn(f"queue: not in the file, begins with {recipe.queue_size} random rows", stacklevel=3)
        queue = NegativeQueue(recipe.queue_size, dim, seed=recipe.seed)
        state.update({"queue": queue.queue.T, "queue_ptr": queue.queue_ptr})
    stored = state.get("queue")
    if not isinstance(stored, Tensor) or stored.ndim != 2:
        came = tuple(stored.shape) if isinstance(stored, Tensor) else type(stored).__name__
        raise ValueError(f"state_dict: expected a matrix queue ({dim}, K), got {came}")
    return stored.shape[1]


def _check_queue(queue: Tensor, queue_ptr: Tensor) -> None:
    if queue.dtype not in QUEUE_DTYPES:
        raise ValueError(f"queue: expected float32, bfloat16 or float16, got {queue.dtype}")
    if not 0 <= int(queue_ptr) < queue.shape[1]:
        raise ValueError(f"queue_ptr: expected a column from 0 to {queue.shape[1] - 1}, got {int(queue_ptr)}")


def _check_tensors(state: Mapping[str, Any], original: nn.Module, argument: str) -> None:
    """ValueError that lists every tensor by which `state` differs from the model's names, shapes and kinds."""
    expected = original.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        came, meant = state[name], expected[name]
        if not isinstance(came, Tensor):
            problems.append(f"{name} is no tensor but {type(came).__name__}")
        elif came.shape != meant.shape:
            problems.append(f"{name} is {tuple(came.shape)} instead of {tuple(meant.shape)}")
        elif came.is_floating_point() != meant.is_floating_point():
            problems.append(f"{name} is {came.dtype} instead of {meant.dtype}")
    if problems:
        raise ValueError(f"{argument}: expected the tensors of facebookresearch/moco; {_list(problems)}")


def _list(problems: Iterable[str]) -> str:
    listed = list(problems)
    rest = len(listed) - LISTED
    return ", ".join(listed[:LISTED]) + (f" and {rest} more" if rest > 0 else "") or "none"
