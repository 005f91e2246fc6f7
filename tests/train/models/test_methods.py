"""The methods: the order of a step and its numbers, against the same step written out in plain PyTorch."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from ssl_fast.train.models.grouped_batch_norm import GroupedBatchNorm, in_groups
from ssl_fast.train.models.methods import build
from tests.helpers.small_runs import SMALL_RECIPES, small_recipe

IMAGES = 50


def method_and_views(name, **changes):
    method = build(small_recipe(name, **changes), channels=1, image_size=24, images=IMAGES)
    # As after some training: the two encoders differ.
    if hasattr(method, "key_encoder"):
        with torch.no_grad():
            for parameter in [*method.encoder.parameters(), *method.head.parameters()]:
                parameter += 0.1 * torch.randn_like(parameter)
    method.start_step(3, 10)
    index = torch.randperm(IMAGES)[:16]
    return method, list(torch.rand(len(small_recipe(name).views), 16, 1, 24, 24)), index


def assert_same_step(method, twin, loss, expected):
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    trained = 0
    for name, parameter in method.named_parameters():
        other = twin.get_parameter(name)
        if name.startswith("key_"):
            assert parameter.grad is None
            torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
        else:
            trained += 1
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert trained


def move_key_encoder(twin, momentum):
    with torch.no_grad():
        for key_part, part in ((twin.key_encoder, twin.encoder), (twin.key_head, twin.head)):
            for t, s in zip(key_part.parameters(), part.parameters(), strict=True):
                t.copy_(momentum * t + (1 - momentum) * s)


def test_simclr_is_the_textbook_step():
    method, views, index = method_and_views("simclr-small")
    twin = copy.deepcopy(method)
    loss, stats, _ = method.loss(views, index)
    z = normalize(twin.head(twin.encoder(torch.cat(views))))
    logits = (z @ z.T / twin.temperature).fill_diagonal_(float("-inf"))
    assert_same_step(method, twin, loss, cross_entropy(logits, torch.arange(32).roll(16)))
    assert 0 <= stats.top1 <= stats.top5 <= 1


@pytest.mark.parametrize("name", ["moco-v1-small", "moco-v2-small"])
def test_moco_is_the_papers_step(name):
    method, views, index = method_and_views(name)
    twin = copy.deepcopy(method)
    loss, _, _ = method.loss(views, index)
    query = normalize(twin.head(twin.encoder(views[0])))
    move_key_encoder(twin, 0.99)
    with torch.no_grad():
        key = normalize(twin.key_head(twin.key_encoder(views[1])))
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ twin.queue.queue.T], 1) / twin.temperature
    assert_same_step(method, twin, loss, cross_entropy(logits, torch.zeros(16, dtype=torch.long)))
    # The keys went into the queue after the loss had seen it as it was.
    torch.testing.assert_close(method.queue.queue[:16], key)
    assert torch.equal(method.queue.queue[16:], twin.queue.queue[16:])
    assert method.queue.queue_ptr == 16
    # The next batch of the same step (accumulate) does not move the key encoder again.
    weights = method.key_encoder[0].weight.clone()
    method.loss(views, index)
    assert torch.equal(method.key_encoder[0].weight, weights)
    method.start_step(4, 10)
    method.loss(views, index)
    assert not torch.equal(method.key_encoder[0].weight, weights)


def test_moco_v3_is_the_papers_step():
    method, views, index = method_and_views("moco-v3-small")
    twin = copy.deepcopy(method)
    loss, _, _ = method.loss(views, index)
    queries = [normalize(twin.predictor(twin.head(twin.encoder(view)))) for view in views]
    # 1 - (1 - 0.99) (cos(3 pi / 10) + 1) / 2
    move_key_encoder(twin, 0.992061073738)
    with torch.no_grad():
        keys = [normalize(twin.key_head(twin.key_encoder(view))) for view in views]
    pairs = ((queries[0], keys[1]), (queries[1], keys[0]))
    temperature = twin.temperature
    contrasts = [cross_entropy(q @ k.T / temperature, torch.arange(16)) for q, k in pairs]
    assert_same_step(method, twin, loss, 2 * temperature * (contrasts[0] + contrasts[1]))


def test_instance_discrimination_is_the_papers_step():
    method, views, index = method_and_views("instdisc-small")
    twin = copy.deepcopy(method)
    loss, _, embeddings = method.loss(views, index)
    features = normalize(twin.head(twin.encoder(views[0])))
    assert_same_step(method, twin, loss, cross_entropy(features @ twin.bank.bank.T / twin.temperature, index))
    assert torch.equal(method.bank.bank, twin.bank.bank)  # until the backward pass is done
    method.after_backward(embeddings, index)
    expected = twin.bank.bank.clone()
    expected[index] = normalize(0.5 * expected[index] + 0.5 * features.detach())
    torch.testing.assert_close(method.bank.bank, expected)


def test_noise_contrast_estimates_the_sum_once_and_near_the_full_softmax():
    method, views, index = method_and_views("instdisc-small", noise=4000, temperature=0.5)
    method.loss(views, index)
    normalizer = method.normalizer.clone()
    features = normalize(method.head(method.encoder(views[0])))
    whole = (features @ method.bank.bank.T / 0.5).exp().sum(1).mean()
    torch.testing.assert_close(normalizer, whole.detach().double(), rtol=0.1, atol=0)
    method.loss([view + 1 for view in views], index)
    assert torch.equal(method.normalizer, normalizer)
    again, _, _ = method_and_views("instdisc-small", noise=4000, temperature=0.5)
    again.load_state_dict(method.state_dict())
    again.loss([view + 1 for view in views], index)
    assert torch.equal(again.normalizer, normalizer)


@pytest.mark.parametrize("temperature", [1 / 100, 1 / 1000])
def test_noise_contrast_is_finite_where_exponentials_overflow(temperature):
    method, views, index = method_and_views("instdisc-small", noise=64, temperature=temperature)
    # A sampled row equal to the features has the exponential exp(1 / temperature): Inf in float32 from exp(88) on.
    features = normalize(method.head(method.encoder(views[0])).detach())
    method.bank.bank.copy_(features[torch.arange(len(method.bank.bank)) % len(features)])
    loss, _, _ = method.loss(views, index)
    assert method.normalizer.isfinite()
    assert method.normalizer > 0
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in method.encoder.parameters())


@pytest.mark.parametrize("name", [name for name in SMALL_RECIPES if "moco" in name])
def test_key_encoders_begin_as_the_encoders(name):
    method = build(small_recipe(name), channels=1, image_size=24, images=IMAGES)
    for part, key_part in ((method.encoder, method.key_encoder), (method.head, method.key_head)):
        for key, value in part.state_dict().items():
            assert torch.equal(value, key_part.state_dict()[key]), key


def without_batch_norm(module):
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        without_batch_norm(child)


@pytest.mark.parametrize("name", SMALL_RECIPES)
def test_micro_batches_give_the_gradient_of_the_big_batch(name):
    big, views, index = method_and_views(name, head_batch_norm="none")
    without_batch_norm(big)
    small = copy.deepcopy(big)
    small.micro_batch = 5  # a rest of one image
    losses = [method.loss(views, index).loss for method in (big, small)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
    for (parameter_name, expected), parameter in zip(big.named_parameters(), small.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-4, atol=1e-5, msg=parameter_name)


def test_micro_batches_move_the_statistics_once():
    method, views, index = method_and_views("simclr-small", micro_batch=8)
    loss = method.loss(views, index).loss
    norms = [module for module in method.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [module.running_mean.clone() for module in norms]
    assert all(mean.any() for mean in before)
    loss.backward()  # computes both parts again
    for module, mean in zip(norms, before, strict=True):
        assert torch.equal(module.running_mean, mean)
        assert module.num_batches_tracked == 2


def test_groups_are_normalised_apart():
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3)
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    twins = [copy.deepcopy(plain) for _ in range(4)]
    grouped = in_groups(nn.Sequential(copy.deepcopy(plain)), 4)[0]
    assert isinstance(grouped, GroupedBatchNorm)
    x = torch.randn(12, 3, 5, 5) * torch.linspace(1, 3, 12)[:, None, None, None]
    expected = torch.empty_like(x)
    for group, twin in enumerate(twins):
        expected[group::4] = twin(x[group::4])
    torch.testing.assert_close(grouped(x), expected)
    for statistic in ("running_mean", "running_var"):
        mean = torch.stack([getattr(twin, statistic) for twin in twins]).mean(0)
        torch.testing.assert_close(getattr(grouped, statistic), mean)
    assert grouped.num_batches_tracked == 1
    plain.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x))
    with pytest.raises(ValueError, match=r"^x: expected a multiple of 4 groups, got \(3, 3, 5, 5\)"):
        grouped.train()(x[:3])


def test_shuffled_groups_hide_which_key_belongs_to_a_query():
    method, views, index = method_and_views("moco-v2-small", bn_groups=4)
    seen = []
    method.key_encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    method.loss(views, index)
    (shuffled,) = seen
    assert not torch.equal(shuffled, views[1])
    order = [int((shuffled == image).flatten(1).all(1).nonzero()) for image in views[1]]
    assert sorted(order) == list(range(16))
    # Keys are back in the order of their queries: with equal encoders and no groups in the way, key i is query i's.
    method.eval()
    key = method.shuffled_key(views[1])
    torch.testing.assert_close(key, method.key_head(method.key_encoder(views[1])), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", ["resnet18", "timm/resnet18"])
def test_published_heads_and_initialisation(encoder):
    recipe = small_recipe("moco-v3-small", encoder=encoder, stem="cifar", head_width=32, predictor_width=24)
    method = build(recipe, channels=3, image_size=32, images=IMAGES)
    kinds = [type(layer).__name__ for layer in method.head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert method.head[0].bias is None
    assert not method.head[4].affine
    assert [tuple(p.shape) for p in (method.head[0].weight, method.head[3].weight)] == [(32, 512), (16, 32)]
    assert len(method.predictor) == 4  # no batch norm at its end
    assert method.encoder(torch.rand(2, 3, 32, 32)).shape == (2, 512)
    if encoder == "resnet18":
        assert not method.encoder.layer1[0].bn2.weight.any()  # a residual block begins as the identity


def test_a_frozen_patch_projection_is_not_trained():
    recipe = dataclasses.replace(
        small_recipe("moco-v3-small"),
        encoder="timm/vit_tiny_patch16_224,depth=1",
        image_size=32,
        freeze_patch_projection=True,
    )
    method = build(recipe, channels=3, image_size=32, images=IMAGES)
    method.start_step(0, 10)
    method.loss(list(torch.rand(2, 4, 3, 32, 32)), torch.arange(4)).loss.backward()
    projection = method.encoder.patch_embed.proj
    assert projection.weight.grad is None
    assert method.encoder.pos_embed.grad is None
    assert method.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"^freeze_patch_projection: expected False without a ViT"):
        build(dataclasses.replace(recipe, encoder="small-8"), channels=3, image_size=32, images=IMAGES)


def test_no_head():
    method, views, index = method_and_views("simclr-small", head_layers=0)
    assert len(method.head) == 0
    assert method.loss(views, index).embeddings.shape == (16, 8)
