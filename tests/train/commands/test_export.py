"""`ssl-fast export`: every file is read by the library it is for, and gives the checkpoint's features."""

import dataclasses
import functools
import json
import re
import sys

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import ssl_fast
from ssl_fast.memory.queue import NegativeQueue
from ssl_fast.train.commands import export as export_command
from ssl_fast.train.commands import import_moco as import_moco_command
from ssl_fast.train.data import datasets
from ssl_fast.train.engine import checkpoint, export_formats
from ssl_fast.train.engine.settings import Settings
from ssl_fast.train.models import encoders
from ssl_fast.train.models.moco_checkpoint import RESNETS
from ssl_fast.train.recipes import RECIPES

VIT = "timm/vit_tiny_patch16_224,depth=2,num_heads=4"
BOTTLENECKS = ("resnet50", "timm/resnet50", "timm/resnext50_32x4d", "timm/wide_resnet50_2")


@functools.cache
def contents_of(encoder="small-8", channels=3, image_size=32, name="simclr", **changes):
    """A checkpoint with batch statistics as after training. Read only: made once."""
    recipe = dataclasses.replace(RECIPES[name], encoder=encoder, projection_dim=8, **changes)
    method = nn.Module()
    method.encoder, features = encoders.create(encoder, channels, recipe.stem, image_size)
    method.head = encoders.mlp(features, features, 8, recipe.head_layers, recipe.head_batch_norm)
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one batch sets them
    with torch.no_grad():
        method.train().encoder(torch.rand(8, channels, image_size, image_size))
    contents = dict.fromkeys(checkpoint.KEYS)
    contents |= {"recipe_name": name, "recipe": recipe, "settings": Settings(), "data": "cifar10", "epoch": 7}
    contents |= {"images": 100, "channels": channels, "image_size": image_size}
    return {**contents, "model": dict(method.state_dict())}


def features_of(contents, images):
    """By the means of the trainer alone."""
    recipe = contents["recipe"]
    with torch.device("meta"):
        encoder, _ = encoders.create(recipe.encoder, contents["channels"], recipe.stem, contents["image_size"])
    weights = {name.partition(".")[2]: x for name, x in contents["model"].items() if name.startswith("encoder.")}
    encoder.load_state_dict(weights, assign=True)
    with torch.no_grad():
        return encoder.eval()(images)


def images_for(contents, count=3):
    return torch.rand(count, contents["channels"], contents["image_size"], contents["image_size"])


def assert_same_features(model, contents):
    images = images_for(contents)
    expected = features_of(contents, images)
    assert expected.std(0).mean() > 1e-3  # of other images other ones
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), expected, atol=1e-5, rtol=1e-5)


def saved(path, contents):
    as_dicts = {name: dataclasses.asdict(contents[name]) for name in ("recipe", "settings")}
    checkpoint.save(path, {**contents, **as_dicts})
    return path


@pytest.mark.parametrize(
    "encoder", ["resnet18", "timm/resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in BOTTLENECKS)]
)
def test_torchvision(encoder, tmp_path):
    contents = contents_of(encoder)
    export_formats.export(contents, "torchvision", tmp_path / "encoder.pt")
    model = getattr(models, encoder.removeprefix("timm/"))()
    model.fc = nn.Identity()
    model.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)
    assert_same_features(model, contents)


@pytest.mark.long
@pytest.mark.parametrize(
    ("encoder", "channels", "options"),
    [
        ("resnet18", 3, {}),
        ("resnet18", 1, {"in_chans": 1}),
        ("timm/resnet18", 3, {}),
        (VIT, 1, {"in_chans": 1, "img_size": 32, "depth": 2, "num_heads": 4}),
    ],
)
def test_timm(encoder, channels, options, tmp_path):
    contents = contents_of(encoder, channels)
    export_formats.export(contents, "timm", tmp_path / "encoder.pt")
    name = encoder.removeprefix("timm/").partition(",")[0]
    model = timm.create_model(name, num_classes=0, **options)
    model.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)
    assert_same_features(model, contents)


@pytest.mark.long
def test_timm_names_every_resnet_of_torchvision_alike():
    for name in RESNETS:
        with torch.device("meta"):
            ours, _ = encoders.create(name, 3, "imagenet", 224)
            theirs = timm.create_model(name, num_classes=0)
        shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
        assert shapes[0] == shapes[1], name


@pytest.mark.parametrize(("encoder", "stem"), [("small-8", "imagenet"), ("resnet18", "cifar")])
def test_safetensors(encoder, stem, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    contents = contents_of(encoder, stem=stem, normalize_images=True)
    path = tmp_path / "new" / "encoder.safetensors"
    export_formats.export(contents, "safetensors", path)
    state = load_file(path)
    expected = {name: x for name, x in contents["model"].items() if name.startswith("encoder.")}
    assert {f"encoder.{name}" for name in state} == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype == expected[f"encoder.{name}"].dtype
        assert torch.equal(tensor, expected[f"encoder.{name}"])
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    mean, std = datasets.NORMALIZATION["cifar10"]
    assert (json.loads(told.pop("mean")), json.loads(told.pop("std"))) == (list(mean), list(std))
    expected = {"format": "pt", "ssl_fast": ssl_fast.__version__, "recipe": "simclr", "epoch": "7", "encoder": encoder}
    expected |= {"stem": stem, "channels": "3", "image_size": "32", "normalize_images": "true"}
    assert told == expected
    model, _ = encoders.create(told["encoder"], int(told["channels"]), told["stem"], int(told["image_size"]))
    model.load_state_dict(state, strict=True)
    assert_same_features(model, contents)


def test_metadata_of_images_that_are_not_normalised_and_of_folders():
    contents = contents_of(normalize_images=False)
    told = export_formats.metadata(contents)
    assert told["normalize_images"] == "false"
    assert not {"mean", "std"} & told.keys()
    recipe = dataclasses.replace(contents["recipe"], normalize_images=True)
    for spec in ("imagefolder:there", "imagenet:there"):
        told = export_formats.metadata({**contents, "recipe": recipe, "data": spec})
        assert json.loads(told["mean"]) == [0.485, 0.456, 0.406]


def onnx_features(path, images):
    """The numbers of onnx's own reference, and of onnxruntime where it is."""
    from onnx.reference import ReferenceEvaluator

    results = [ReferenceEvaluator(str(path)).run(None, {"images": images.numpy()})]
    try:
        import onnxruntime
    except ModuleNotFoundError:
        pass
    else:
        results.append(onnxruntime.InferenceSession(path).run(["features"], {"images": images.numpy()}))
    return [torch.from_numpy(features) for (features,) in results]


@pytest.mark.long
@pytest.mark.parametrize(("encoder", "channels"), [("small-8", 1), pytest.param(VIT, 3, marks=pytest.mark.slow)])
def test_onnx(encoder, channels, tmp_path, capfd):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    contents = contents_of(encoder, channels, normalize_images=False)
    path = tmp_path / "encoder.onnx"
    export_formats.export(contents, "onnx", path)
    assert capfd.readouterr().out == ""
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]  # no second file with the weights
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == export_formats.metadata(contents)
    for count in (1, 5):  # the batch's size is free
        images = images_for(contents, count)
        for features in onnx_features(path, images):
            torch.testing.assert_close(features, features_of(contents, images), atol=1e-5, rtol=1e-4)


def test_onnx_of_more_than_a_message_holds(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export_formats, "LARGEST_ONNX", 1000)
    with pytest.raises(ValueError, match="encoder: the format onnx holds at most 1000 bytes of weights, got"):
        export_formats.export(contents_of(), "onnx", tmp_path / "encoder.onnx")


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("safetensors", "safetensors")]
)
def test_a_missing_package_is_named(format, package, tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "last.pt", contents_of())
    monkeypatch.setitem(sys.modules, package, None)
    assert export_command.main([str(path), "--format", format, "--output", str(tmp_path / "out")]) == 2
    message = f"ssl-fast export: --format {format} needs {package}: pip install 'ssl-fast[export]'\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("encoder", "channels", "stem", "format", "message"),
    [
        ("small-8", 3, "imagenet", "torchvision", "encoder: small-8 is none of torchvision's .* safetensors takes any"),
        ("small-8", 3, "imagenet", "timm", "encoder: small-8 is none of .* safetensors takes any"),
        (VIT, 3, "imagenet", "torchvision", "encoder: timm/vit_tiny.* is none of torchvision's"),
        ("resnet18", 3, "cifar", "torchvision", "stem: torchvision's resnet18 .* cifar stem's .* safetensors"),
        ("resnet18", 3, "cifar", "timm", "stem: timm's resnet18 .* cifar stem.* safetensors"),
        ("timm/resnet18", 3, "cifar", "timm", "stem: timm's resnet18 .* cifar stem.* safetensors"),
        ("resnet18", 1, "imagenet", "torchvision", "channels: torchvision's resnet18 takes 3, this one 1;"),
        ("resnet18", 3, "imagenet", "moco", "recipe: the format moco is of moco-v1 and moco-v2, got simclr"),
        ("resnet18", 3, "imagenet", "pickle", "format: expected one of torchvision, .*, moco, got 'pickle'"),
    ],
)
def test_what_a_format_cannot_hold(encoder, channels, stem, format, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_formats.export(contents_of(encoder, channels, stem=stem), format, tmp_path / "new" / "encoder")
    assert not list(tmp_path.iterdir())


def test_other_weights(tmp_path):
    contents = contents_of()
    model = {name: tensor for name, tensor in contents["model"].items() if name != "encoder.0.weight"}
    contents = {**contents, "model": model}
    with pytest.raises(ValueError, match=r'^model: .*Missing key.*"0\.weight"') as caught:
        export_formats.export(contents, "safetensors", tmp_path / "encoder")
    assert "\n" not in str(caught.value)


def test_the_encoder_is_in_eval_mode():
    contents = contents_of()
    encoder = export_formats.encoder_of(contents)
    assert not any(module.training for module in encoder.modules())
    images = images_for(contents)
    assert torch.equal(encoder(images), features_of(contents, images))


def test_dtype_and_random_state_stay(tmp_path):
    from safetensors.torch import load_file

    contents = contents_of(encoder="small-8")
    double = {name: x.double() / 3 if x.is_floating_point() else x for name, x in contents["model"].items()}
    before = torch.get_rng_state()
    export_formats.export({**contents, "model": double}, "safetensors", tmp_path / "encoder")
    assert torch.equal(torch.get_rng_state(), before)
    written = load_file(tmp_path / "encoder")["0.weight"]
    assert written.dtype == torch.float64
    assert torch.equal(written, double["encoder.0.weight"])


def test_views_of_one_storage_and_other_layouts(tmp_path):
    from safetensors.torch import load_file

    contents = contents_of("resnet18")
    flat = torch.cat([x.flatten() for name, x in contents["model"].items() if name.endswith("conv1.weight")] * 20)
    weight = flat[: 64 * 3 * 49].view(64, 3, 7, 7)
    model = {
        name: x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for name, x in contents["model"].items()
    }
    contents = {**contents, "model": {**model, "encoder.conv1.weight": weight}}
    for format in ("torchvision", "safetensors"):
        export_formats.export(contents, format, tmp_path / format)
        size = sum(x.numel() * x.element_size() for name, x in model.items() if name.startswith("encoder."))
        assert size < (tmp_path / format).stat().st_size < 1.01 * size
    states = torch.load(tmp_path / "torchvision"), load_file(tmp_path / "safetensors")
    for state in states:
        assert all(torch.equal(tensor, contents["model"][f"encoder.{name}"]) for name, tensor in state.items())


def test_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "encoder").write_text("old")
    monkeypatch.setattr(export_formats.files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        export_formats.export(contents_of(), "safetensors", tmp_path / "encoder")
    assert (tmp_path / "encoder").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


LOADING = [
    ("resnet18", "torchvision", "torchvision"),
    ("resnet18", "timm", "timm"),
    (VIT, "timm", "timm"),
    ("small-8", "safetensors", "safetensors.torch"),
]


@pytest.mark.parametrize(("encoder", "format", "module"), LOADING)
def test_the_command_prints_code_that_loads(encoder, format, module, tmp_path, capsys):
    contents = contents_of(encoder)
    path, output = saved(tmp_path / "last.pt", contents), tmp_path / "it's" / "encoder"
    assert export_command.main([str(path), "--format", format, "--output", str(output)]) == 0
    names = {}
    exec(f"import torch, {module}\n" + capsys.readouterr().out, names)
    if format == "safetensors":
        names["model"], _ = encoders.create(encoder, 3, "imagenet", 32)
        names["model"].load_state_dict(names["state"])
    assert_same_features(names["model"], contents)


def moco_contents():
    contents = contents_of("resnet18", name="moco-v2", queue_size=21)
    model = {**contents["model"], **{f"key_{name}": tensor + 1 for name, tensor in contents["model"].items()}}
    model |= {f"queue.{name}": tensor for name, tensor in NegativeQueue(21, 8, seed=1).state_dict().items()}
    return {**contents, "model": model}


@pytest.mark.long
def test_moco_and_back_by_the_commands(tmp_path, capsys):
    contents = moco_contents()
    path, there, back = saved(tmp_path / "last.pt", contents), tmp_path / "moco.pth.tar", tmp_path / "back.pt"
    assert export_command.main([str(path), "--format", "moco", "--output", str(there)]) == 0
    command = capsys.readouterr().out.split()
    assert command[:7] == ["python", "main_moco.py", "--arch", "resnet18", "--mlp", "--moco-dim", "8"]
    assert command[command.index("--resume") + 1] == str(there)
    moco = torch.load(there, weights_only=True)
    assert (moco["epoch"], moco["arch"]) == (7, "resnet18")

    assert import_moco_command.main([str(there), "--output", str(back), "--data", "imagefolder:here"]) == 0
    assert capsys.readouterr().out == f"ssl-fast eval {back} --data imagefolder:here\n"
    imported = checkpoint.load(back)
    assert imported["recipe"] == dataclasses.replace(
        RECIPES["moco-v2"], encoder="resnet18", projection_dim=8, queue_size=21
    )
    assert (imported["recipe_name"], imported["data"], imported["epoch"]) == ("moco-v2", "imagefolder:here", 7)
    assert (imported["channels"], imported["image_size"]) == (3, 224)
    assert imported["model"].keys() == contents["model"].keys()
    assert all(torch.equal(imported["model"][name], tensor) for name, tensor in contents["model"].items())
    export_formats.export(imported, "torchvision", tmp_path / "encoder.pt")

    before = back.read_bytes()
    assert import_moco_command.main([str(there), "--output", str(back)]) == 2
    assert capsys.readouterr().err == f"ssl-fast import-moco: output: expected a new name, {back} is there\n"
    assert back.read_bytes() == before


def test_user_errors(tmp_path, capsys):
    path = saved(tmp_path / "last.pt", contents_of())
    before = path.read_bytes()
    for arguments, message in (
        ([str(tmp_path / "none.pt"), "--output", "out"], r"none\.pt: no such checkpoint"),
        ([str(path), "--output", str(path)], "output: expected another file than the checkpoint, got"),
        ([str(path), "--output", str(tmp_path)], "output: expected a file or a new name, got the folder"),
    ):
        assert export_command.main([*arguments, "--format", "safetensors"]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.startswith("ssl-fast export: ")
        assert error.count("\n") == 1
    assert import_moco_command.main([str(path), "--output", str(tmp_path / "out.pt")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ssl-fast import-moco: {path}: moco: expected epoch, arch and state_dict, got ")
    assert error.count("\n") == 1
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("arguments", [[], ["last.pt"], ["last.pt", "--format", "pickle", "--output", "out"]])
def test_wrong_options_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        export_command.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err
