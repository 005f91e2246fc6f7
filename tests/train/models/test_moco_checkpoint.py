"""Checkpoints of facebookresearch/moco: read by a model of its shapes, and back bit for bit."""

import dataclasses
import os
import re
from copy import deepcopy

import pytest
import torch
from torch import nn
from torchvision import models

from ssl_fast import NegativeQueue
from ssl_fast.train.models import encoders
from ssl_fast.train.models.moco_checkpoint import from_moco, import_moco, to_moco
from ssl_fast.train.recipes import RECIPES

DIM, SIZE = 24, 37  # neither divides the other, nor a batch
RECIPES_OF_MOCO = ("moco-v1", "moco-v2")


def randomized(module):
    """Other numbers in every tensor, those of batch norm too; num_batches_tracked as after that many steps."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            tensor.random_(100)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)  # keeps the features' size
        else:
            tensor.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else tensor.uniform_(-0.5, 0.5)
    return module


def recipe_of(name, **changes):
    fields = {"encoder": "resnet18", "projection_dim": DIM, "queue_size": SIZE, **changes}
    return dataclasses.replace(RECIPES[name], **fields)


def parts_of(encoder, layers):
    method = nn.Module()
    method.encoder, features = encoders.create(encoder, 3, "imagenet", 32)
    method.head = encoders.mlp(features, features, DIM, layers)
    method.key_encoder, method.key_head = deepcopy(method.encoder), deepcopy(method.head)
    return method


def contents_of(name):
    recipe = recipe_of(name)
    with torch.device("meta"):
        method = parts_of("resnet18", recipe.head_layers)
    method = randomized(method.to_empty(device="cpu"))
    method.queue = NegativeQueue(SIZE, DIM, seed=3)
    method.queue.queue_ptr.fill_(SIZE - 4)
    model = dict(method.state_dict())
    return {"recipe_name": name, "recipe": recipe, "model": model, "epoch": 7, "channels": 3, "image_size": 32}


class TheirMoCo(nn.Module):
    """As facebookresearch/moco makes it: the projection head in the place of the classifier, the queue transposed."""

    def __init__(self, base_encoder, dim, size, mlp):
        super().__init__()
        self.encoder_q, self.encoder_k = base_encoder(num_classes=dim), base_encoder(num_classes=dim)
        if mlp:
            for encoder in (self.encoder_q, self.encoder_k):
                width = encoder.fc.in_features
                encoder.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), encoder.fc)
        self.register_buffer("queue", torch.randn(dim, size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))


@pytest.fixture(scope="module")
def ours():
    """Read only: each is some 100 MB."""
    return {name: contents_of(name) for name in RECIPES_OF_MOCO}


@pytest.fixture(scope="module")
def exported(ours):
    return to_moco(ours["moco-v2"])


@pytest.fixture
def theirs(exported):
    """Its dicts may be changed, its tensors not."""
    return {**exported, "state_dict": dict(exported["state_dict"])}


def assert_same_model(model, expected):
    assert model.keys() == expected.keys()
    for name, tensor in expected.items():
        assert model[name].dtype == tensor.dtype, name
        assert torch.equal(model[name], tensor), name


@pytest.mark.parametrize("name", RECIPES_OF_MOCO)
def test_their_model_loads_it_and_computes_the_same(name, ours):
    contents = ours[name]
    recipe, model = contents["recipe"], contents["model"]
    moco = to_moco(contents)
    assert (moco["epoch"], moco["arch"]) == (7, "resnet18")
    with torch.device("meta"):
        their_model = TheirMoCo(models.resnet18, DIM, SIZE, mlp=name == "moco-v2")
    assert all(key.startswith("module.") for key in moco["state_dict"])
    state = {key.removeprefix("module."): tensor for key, tensor in moco["state_dict"].items()}
    their_model.load_state_dict(state, strict=True, assign=True)
    their_model.eval()

    assert torch.equal(their_model.queue, model["queue.queue"].T)
    assert their_model.queue_ptr.item() == SIZE - 4
    images = torch.rand(3, 3, 32, 32)
    for ours_prefix, their_encoder in (("", their_model.encoder_q), ("key_", their_model.encoder_k)):
        with torch.device("meta"):
            our_model = parts_of("resnet18", recipe.head_layers).eval()
        our_model.load_state_dict({k: v for k, v in model.items() if not k.startswith("queue.")}, assign=True)
        encoder, head = (our_model.get_submodule(f"{ours_prefix}{part}") for part in ("encoder", "head"))
        embeddings = head(encoder(images))
        assert embeddings.std(0).mean() > 1e-3  # of other images other ones
        torch.testing.assert_close(their_encoder(images), embeddings)


def test_their_optimizer_loads_it(ours):
    contents = ours["moco-v1"]
    changed = dataclasses.replace(contents["recipe"], weight_decay=0.25, optimizer_momentum=0.5, learning_rate=0.75)
    moco = to_moco({**contents, "recipe": changed})
    with torch.device("meta"):
        parameters = list(TheirMoCo(models.resnet18, DIM, SIZE, mlp=False).parameters())
    sgd = torch.optim.SGD(parameters, 1.0)
    sgd.load_state_dict(moco["optimizer"])
    (group,) = sgd.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.75, 0.5, 0.25)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    sgd.step()


@pytest.mark.parametrize("name", RECIPES_OF_MOCO)
def test_round_trip(name, ours):
    before = deepcopy(ours[name]["model"])
    back = from_moco(to_moco(ours[name]))
    assert_same_model(back["model"], before)
    assert_same_model(ours[name]["model"], before)  # which stay as they were
    assert back["recipe"] == ours[name]["recipe"]
    assert (back["recipe_name"], back["epoch"], back["channels"], back["image_size"]) == (name, 7, 3, 224)
    # Not views of the file's tensors: the queue would keep its transposed layout.
    assert all(tensor.is_contiguous() for tensor in back["model"].values())


def with_queue(contents, **changes):
    recipe = dataclasses.replace(contents["recipe"], **changes)
    queue = NegativeQueue(recipe.queue_size, DIM, getattr(torch, recipe.queue_dtype), seed=4)
    queue.queue_ptr.fill_(3)
    model = {**contents["model"], **{f"queue.{name}": tensor for name, tensor in queue.state_dict().items()}}
    return {**contents, "recipe": recipe, "model": model}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_round_trip_of_a_queue_of_half_the_bytes(ours, dtype):
    contents = with_queue(ours["moco-v1"], queue_dtype=dtype)
    back = from_moco(to_moco(contents))
    assert_same_model(back["model"], contents["model"])
    assert back["recipe"].queue_dtype == dtype


def test_a_square_queue_is_transposed_too(ours):
    contents = with_queue(ours["moco-v1"], queue_size=DIM)
    moco = to_moco(contents)
    assert torch.equal(moco["state_dict"]["module.queue"], contents["model"]["queue.queue"].T)
    assert_same_model(from_moco(moco)["model"], contents["model"])


def test_a_head_of_the_features_width_by_number(ours):
    contents = ours["moco-v2"]
    moco = to_moco({**contents, "recipe": dataclasses.replace(contents["recipe"], head_width=512)})
    assert "module.encoder_q.fc.2.weight" in moco["state_dict"]


def test_timms_resnet_is_torchvisions(ours):
    contents = {**ours["moco-v1"], "recipe": recipe_of("moco-v1", encoder="timm/resnet18")}
    assert to_moco(contents)["arch"] == "resnet18"


@pytest.mark.parametrize("arch", ["resnet50", "wide_resnet50_2"])
def test_every_tensor_of_a_bottleneck_resnet_has_its_place(arch):
    with torch.device("meta"):
        state = TheirMoCo(getattr(models, arch), DIM, SIZE, mlp=True).state_dict()
        ours = parts_of(arch, layers=2).state_dict()
    state["queue_ptr"] = torch.zeros(1, dtype=torch.int64)
    model = from_moco({"epoch": 1, "arch": arch, "state_dict": state})["model"]
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    shapes |= {"queue.queue": (SIZE, DIM), "queue.queue_ptr": (1,)}
    assert {name: tensor.shape for name, tensor in model.items()} == shapes


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_files_without_optimizer_and_prefix(theirs, ours, prefix):
    state = {prefix + name.removeprefix("module."): tensor for name, tensor in theirs["state_dict"].items()}
    back = from_moco({"epoch": 800, "arch": "resnet18", "state_dict": state})
    assert back["epoch"] == 800
    assert_same_model(back["model"], ours["moco-v2"]["model"])


def test_a_file_of_the_query_encoder_alone(theirs, ours):
    state = {name: tensor for name, tensor in theirs["state_dict"].items() if ".encoder_q." in name}
    with pytest.warns(UserWarning, match="not in the file") as warned:
        back = from_moco({**theirs, "state_dict": state})
    assert [str(warning.message).partition(":")[0] for warning in warned] == ["encoder_k", "queue"]
    model, before = back["model"], ours["moco-v2"]["model"]
    for name, tensor in before.items():
        part = name.partition(".")[0]
        if part in ("encoder", "head"):
            assert torch.equal(model[name], tensor)
            assert torch.equal(model[f"key_{name}"], tensor)
            assert model[f"key_{name}"].data_ptr() != model[name].data_ptr()
    recipe = back["recipe"]
    assert recipe.queue_size == RECIPES["moco-v2"].queue_size
    assert model["queue.queue"].shape == (recipe.queue_size, DIM)
    torch.testing.assert_close(model["queue.queue"].norm(dim=1), torch.ones(recipe.queue_size))
    assert model["queue.queue_ptr"].tolist() == [0]
    assert len(model) == len(before)


def without(*names):
    return lambda state: [state.pop(f"module.{name}") for name in names]


def with_tensor(name, change):
    return lambda state: state.update({f"module.{name}": change(state.get(f"module.{name}"))})


BAD_STATES = [
    (without("encoder_q.conv1.weight"), "encoder_q.conv1.weight is missing"),
    (without("encoder_q.bn1.num_batches_tracked"), "encoder_q.bn1.num_batches_tracked is missing"),
    (
        without("encoder_k.fc.0.bias", "encoder_k.bn1.running_var"),
        "encoder_k.bn1.running_var is missing, encoder_k.fc.0.bias is missing",
    ),
    (without("queue_ptr"), "queue_ptr is missing"),
    (without("queue"), r"expected a matrix queue \(24, K\), got NoneType"),
    (without("encoder_q.fc.2.weight"), r"encoder_q\.fc\.2\.weight \(v2\), got encoder_k.bn1.bias, .* more"),
    (with_tensor("predictor.weight", lambda _: torch.zeros(3)), "predictor.weight is unknown"),
    (with_tensor("queue", lambda queue: queue.T), r"queue is \(37, 24\) instead of \(24, 24\)"),
    (with_tensor("queue", lambda queue: queue[0]), r"expected a matrix queue \(24, K\), got \(37,\)"),
    (
        with_tensor("queue", lambda queue: queue.double()),
        "queue: expected float32, bfloat16 or float16, got torch.float64",
    ),
    (with_tensor("queue_ptr", lambda pointer: pointer[0]), r"queue_ptr is \(\) instead of \(1,\)"),
    (with_tensor("queue_ptr", lambda pointer: pointer + 4), "queue_ptr: expected a column from 0 to 36, got 37"),
    (with_tensor("queue_ptr", lambda pointer: -pointer), "queue_ptr: expected a column from 0 to 36, got -33"),
    (with_tensor("encoder_q.conv1.weight", lambda x: x[:, :1]), r"conv1.weight is \(64, 1, 7, 7\) instead of \(64, 3"),
    (with_tensor("encoder_q.conv1.weight", lambda x: x.int()), "conv1.weight is torch.int32 instead of torch.float32"),
    (with_tensor("encoder_k.fc.2.bias", lambda x: x.tolist()), "encoder_k.fc.2.bias is no tensor but list"),
    (with_tensor("encoder_q.fc.2.weight", lambda x: x[:5]), r"queue is \(24, 37\) instead of \(5, 37\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD_STATES)
def test_wrong_tensors_are_listed(theirs, change, message):
    change(theirs["state_dict"])
    with pytest.raises(ValueError, match=message) as caught:
        from_moco(theirs)
    assert "\n" not in str(caught.value)


def test_a_partly_wrapped_file(theirs):
    state = theirs["state_dict"]
    state["queue"] = state.pop("module.queue")
    with pytest.raises(ValueError, match=r"got module\.encoder_k"):
        from_moco(theirs)


def test_a_long_list_is_cut(theirs):
    state = {name: tensor for name, tensor in theirs["state_dict"].items() if ".encoder_q.layer" not in name}
    count = len(theirs["state_dict"]) - len(state)
    with pytest.raises(ValueError, match=rf"is missing and {count - 12} more$"):
        from_moco({**theirs, "state_dict": state})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet34"}, r"state_dict: .* encoder_q\.layer1\.2\.conv1\.weight is missing"),
        ({"arch": "vgg16"}, "arch: expected one of .*resnet50.* got 'vgg16'"),
        ({"arch": "small-8"}, "arch: expected one of .* got 'small-8'"),
        ({"epoch": "many"}, "epoch: expected the number of complete epochs, got 'many'"),
        ({"epoch": -1}, "epoch: .* got -1"),
        ({"state_dict": [1]}, "moco: expected epoch, arch and state_dict, got epoch, arch"),
        ({"state_dict": {}}, r"expected a matrix encoder_q\.fc\.weight \(MoCo v1\).* got none"),
    ],
)
def test_wrong_fields_of_a_file(theirs, changes, message):
    with pytest.raises(ValueError, match=message):
        from_moco({**theirs, **changes})


def test_a_linear_classifier_is_no_moco():
    state = models.resnet18().state_dict()
    with pytest.raises(ValueError, match=r"encoder_q\.fc\.weight .* got bn1\.bias"):
        from_moco({"epoch": 100, "arch": "resnet18", "state_dict": state})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("moco-v2", {"head_width": 64}, "head_width: .* features' 512, got 64"),
        ("moco-v2", {"head_layers": 3}, "head_layers: .* got 3 with"),
        ("moco-v2", {"head_layers": 0}, "head_layers: .* got 0 with"),
        ("moco-v2", {"head_batch_norm": "hidden"}, "head_layers: .* got 2 with head_batch_norm hidden"),
        ("moco-v2", {"stem": "cifar"}, "stem: torchvision's resnet18 begins with a 7x7 .* the cifar stem's 3x3"),
        ("moco-v2", {"encoder": "small-8"}, "encoder: small-8 is none of torchvision's .*resnet18.* safetensors"),
        ("moco-v2", {"encoder": "timm/resnet18,output_stride=16"}, "encoder: timm/resnet18,output_stride=16 is none"),
    ],
)
def test_runs_that_it_has_no_model_for(ours, name, changes, message):
    contents = {**ours[name], "recipe": dataclasses.replace(ours[name]["recipe"], **changes)}
    with pytest.raises(ValueError, match=message):
        to_moco(contents)


def test_another_method_or_number_of_channels(ours):
    contents = ours["moco-v1"]
    with pytest.raises(ValueError, match="recipe: the format moco is of moco-v1 and moco-v2, got moco-v3"):
        to_moco({**contents, "recipe": RECIPES["moco-v3"]})
    with pytest.raises(ValueError, match="channels: torchvision's resnet18 takes 3, this one 1;"):
        to_moco({**contents, "channels": 1})


def test_a_model_that_does_not_fit_its_recipe(ours):
    contents = ours["moco-v1"]
    model = {name: tensor for name, tensor in contents["model"].items() if not name.startswith(("key_", "queue.queue"))}
    with pytest.raises(ValueError, match=r"^model: .* encoder_k\.conv1\.weight is missing"):
        to_moco({**contents, "model": model})
    with pytest.raises(ValueError, match=r"queue is \(24, 37\) instead of \(24, 38\)"):
        to_moco({**contents, "recipe": recipe_of("moco-v1", queue_size=SIZE + 1)})


def test_tensors_are_saved_without_the_rest_of_their_storage(ours, tmp_path):
    contents = ours["moco-v1"]
    count = sum(tensor.numel() for tensor in contents["model"].values())
    flat, model, start = torch.zeros(count), {}, 0
    for name, tensor in contents["model"].items():
        whole = flat[start : start + tensor.numel()].view_as(tensor)
        model[name] = whole.copy_(tensor) if tensor.is_floating_point() else tensor
        start += tensor.numel()
    torch.save(to_moco({**contents, "model": model}), tmp_path / "moco.pth.tar")
    assert (tmp_path / "moco.pth.tar").stat().st_size < 4.1 * count


def test_import_of_a_file(theirs, ours, tmp_path):
    path = tmp_path / "checkpoint_0006.pth.tar"
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(3))], 0.1, momentum=0.9)
    sgd.param_groups[0]["params"][0].grad = torch.ones(3)
    sgd.step()
    torch.save({**theirs, "optimizer": sgd.state_dict()}, path)
    contents = import_moco(path)
    assert contents["recipe_name"] == "moco-v2"
    assert_same_model(contents["model"], ours["moco-v2"]["model"])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "arch": "resnet18", "state_dict": Evil()}, "evil.pt")
    with pytest.raises(ValueError, match=r"^evil\.pt: expected a checkpoint, cannot be read \(UnpicklingError\)$"):
        import_moco("evil.pt")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("foreign", "message"),
    [(torch.zeros(3), "got Tensor"), ({"model": {}}, "got model"), ({}, "got nothing")],
)
def test_foreign_files(tmp_path, foreign, message):
    path = tmp_path / "foreign.pt"
    torch.save(foreign, path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*expected .*{message}"):
        import_moco(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file$"):
        import_moco(tmp_path / "none.pt")
