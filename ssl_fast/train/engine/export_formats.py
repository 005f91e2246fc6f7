"""A checkpoint's encoder as a file for other programs: torchvision, timm, safetensors, ONNX, facebookresearch/moco."""

from __future__ import annotations

import importlib
import io
import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .. import files
from ..data.datasets import NORMALIZATION
from ..models import encoders
from ..models.moco_checkpoint import own_storage, resnet_name, to_moco

Format = Literal["torchvision", "timm", "safetensors", "onnx", "moco"]
Contents = Mapping[str, Any]  # of a checkpoint, as checkpoint.load returns them
LARGEST_ONNX = 2**31 - 1  # bytes of one protobuf message


def encoder_of(contents: Contents) -> nn.Module:
    """The encoder with its trained weights, in their dtype and in eval mode: (N, channels, S, S) to (N, features).

    contents: recipe, channels, image_size and model of a checkpoint. Torch's global random state stays as it is.
    Raises ValueError where the weights are not those of the recipe's encoder.
    """
    recipe = contents["recipe"]
    with torch.random.fork_rng(devices=[]):
        encoder, _ = encoders.create(recipe.encoder, contents["channels"], recipe.stem, contents["image_size"])
    state = {
        name.removeprefix("encoder."): own_storage(tensor)
        for name, tensor in contents["model"].items()
        if name.startswith("encoder.")
    }
    try:
        encoder.load_state_dict(state, assign=True)  # not a copy, which would have the new encoder's dtype
    except RuntimeError as error:  # torch lists every weight that does not fit, a line each
        raise ValueError(f"model: {' '.join(str(error).split())}") from error
    return encoder.eval()


def torchvision_state(contents: Contents) -> dict[str, Tensor]:
    """The encoder's state dict for torchvision's ResNet of that name after `model.fc = nn.Identity()`, strict.

    Raises ValueError, naming the field and saying why, where torchvision's own class has no such encoder.
    """
    resnet_name(contents["recipe"], contents["channels"])
    return _state(contents)


def timm_state(contents: Contents) -> dict[str, Tensor]:
    """The encoder's state dict for `timm_model(contents)`, strict; a ResNet of torchvision has timm's names.

    Raises ValueError, naming the field and saying why, where timm's own class has no such encoder.
    """
    timm_model(contents)
    return _state(contents)


def timm_model(contents: Contents) -> tuple[str, dict[str, int]]:
    """The name and the options with which `timm.create_model` makes the encoder. Raises ValueError as timm_state."""
    recipe, channels = contents["recipe"], contents["channels"]
    if recipe.stem != "imagenet":
        raise ValueError(
            f"stem: timm's {recipe.encoder.removeprefix('timm/')} has none of a 3x3 convolution without pooling as "
            f"the {recipe.stem} stem; the format safetensors takes any"
        )
    # A ResNet of torchvision has no channels of its own: timm takes any number.
    encoder = recipe.encoder if recipe.encoder.startswith("timm/") else resnet_name(recipe, channels=3)
    return encoders.timm_options(encoder, channels, contents["image_size"])


def metadata(contents: Contents) -> dict[str, str]:
    """What a reader of the encoder must know, as strings: numbers in decimal, lists and truth values as JSON.

    mean and std, one number a channel, white being 1, are there where the input is normalised.
    """
    from ...version import __version__

    recipe = contents["recipe"]
    described: dict[str, Any] = {"ssl_fast": __version__, "recipe": contents["recipe_name"]}
    described |= {"epoch": contents["epoch"], "encoder": recipe.encoder, "stem": recipe.stem}
    described |= {"channels": contents["channels"], "image_size": contents["image_size"]}
    described |= {"normalize_images": json.dumps(recipe.normalize_images)}
    if recipe.normalize_images:
        name = contents["data"].partition(":")[0]
        mean, std = NORMALIZATION["imagenet" if name == "imagefolder" else name]
        described |= {"mean": json.dumps(mean), "std": json.dumps(std)}
    return {name: str(value) for name, value in described.items()}


def _state(contents: Contents) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in encoder_of(contents).state_dict().items()}


def _saved(tensors: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def _safetensors(contents: Contents) -> bytes:
    _require("safetensors", "safetensors")
    from safetensors.torch import save

    # "format": pt is what the loaders of other libraries ask for.
    return save(_state(contents), metadata={"format": "pt", **metadata(contents)})


def _onnx(contents: Contents) -> bytes:
    _require("onnx", "onnx", "onnxscript")
    import onnx

    encoder = encoder_of(contents)
    size = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    if size > LARGEST_ONNX:
        raise ValueError(f"encoder: the format onnx holds at most {LARGEST_ONNX} bytes of weights, got {size}")
    side = contents["image_size"]
    # Two images: of one, torch.export would take the number for a constant.
    images = torch.zeros(2, contents["channels"], side, side, dtype=next(encoder.parameters()).dtype)
    program = torch.onnx.export(
        encoder,
        (images,),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None  # it is with dynamo=True
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata(contents))
    return model.SerializeToString()


WRITERS: dict[str, Callable[[Contents], bytes]] = {
    "torchvision": lambda contents: _saved(torchvision_state(contents)),
    "timm": lambda contents: _saved(timm_state(contents)),
    "safetensors": _safetensors,
    "onnx": _onnx,
    "moco": lambda contents: _saved(to_moco(contents)),
}


def _require(format: str, *packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            # Not a ModuleNotFoundError, for which the command would name the trainer's extra.
            raise ImportError(f"--format {format} needs {package}: pip install 'ssl-fast[export]'") from error


def export(contents: Contents, format: Format, output: str | Path) -> None:
    """Writes the encoder (moco: the whole run) to `output`, whole or not at all.

    contents: of a checkpoint. torchvision, timm: a state dict, for strict loading. safetensors: any encoder, with
    `metadata`. onnx: images (N, channels, S, S) to features (N, features) for any N, with the same metadata.
    moco: as facebookresearch/moco saves it.
    Raises ValueError for a format that has no such encoder, ImportError without the packages of the format.
    """
    if format not in WRITERS:
        raise ValueError(f"format: expected one of {', '.join(get_args(Format))}, got {format!r}")
    if Path(output).is_dir():
        raise ValueError(f"output: expected a file or a new name, got the folder {output}")
    written = WRITERS[format](contents)  # before the folder is made: nothing is left of what fails
    with files.replacing(output) as file:
        file.write(written)


def how_to_load(contents: Contents, format: Format, output: Path) -> str:
    """The Python, or for moco the command, that reads what `export` wrote."""
    recipe, quoted = contents["recipe"], repr(str(output))
    if format == "torchvision":
        name = resnet_name(recipe, contents["channels"])
        made = f"model = torchvision.models.{name}()\nmodel.fc = torch.nn.Identity()"
        return f"{made}\nmodel.load_state_dict(torch.load({quoted}))"
    if format == "timm":
        name, options = timm_model(contents)
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"model = timm.create_model({name!r}, {given})\nmodel.load_state_dict(torch.load({quoted}))"
    if format == "safetensors":
        return f"state = safetensors.torch.load_file({quoted})"
    if format == "onnx":
        return f"(features,) = onnxruntime.InferenceSession({quoted}).run(None, {{'images': images}})"
    arch = resnet_name(recipe, contents["channels"])
    mlp = " --mlp" if recipe.head_layers == 2 else ""
    return (
        f"python main_moco.py --arch {arch}{mlp} --moco-dim {recipe.projection_dim} --moco-k {recipe.queue_size} "
        f"--moco-m {recipe.momentum} --moco-t {recipe.temperature} --resume {shlex.quote(str(output))} ..."
    )
