"""The losses beside other libraries and codebases: values and gradients agree, and each test says by which factor.

The libraries are imported, without a skip: one that is missing must be seen. The codebases' losses are written here
as their sources compute them, in plain lines.
"""

import math
from functools import partial

import pytest
import torch
from lightly.loss import DCLLoss, DCLWLoss, NTXentLoss
from pytorch_metric_learning import losses as metric_learning
from torch.nn.functional import cross_entropy, logsigmoid, normalize

import ssl_fast
from ssl_fast import NegativeQueue, functional

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
every_dtype = pytest.mark.parametrize("dtype", list(TOLERANCE))
every_temperature = pytest.mark.parametrize("temperature", [0.07, 0.5])


def assert_agree(ours, theirs, *tensors, factor=1.0, offset=0.0, tolerance=None):
    """factor * ours + offset is theirs, and so are the gradients of all tensors."""
    (loss, gradients), (expected, expected_gradients) = (_with_gradients(f, tensors) for f in (ours, theirs))
    tolerance = tolerance or TOLERANCE[tensors[0].dtype]
    assert loss.item() * factor + offset == pytest.approx(expected.item(), rel=tolerance)
    for got, truth in zip(gradients, expected_gradients, strict=True):
        assert truth.abs().max() > 0
        torch.testing.assert_close(factor * got, truth, rtol=0, atol=tolerance * truth.abs().max().item())


def _with_gradients(function, tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    loss = function(*leaves)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def two_views(dtype, count=12, dim=10):
    z1, noise = torch.randn(2, count, dim, dtype=dtype)
    return z1, z1 + noise


# Libraries


@every_dtype
@every_temperature
def test_lightly_nt_xent(dtype, temperature):
    # Factor 1: both are the mean over 2N rows. lightly's default temperature is 0.5.
    ours = partial(functional.nt_xent, temperature=temperature)
    assert_agree(ours, NTXentLoss(temperature), *two_views(dtype))


@every_dtype
def test_lightly_nt_xent_with_a_memory_bank(dtype):
    # Factor 1: with a bank it is InfoNCE of the first view against the bank, the mean over N rows.
    theirs = NTXentLoss(0.2, memory_bank_size=(32, 10)).to(dtype)
    queue = NegativeQueue(32, 10, dtype=dtype)
    queue.queue.copy_(theirs.memory_bank.bank)
    z1, z2 = two_views(dtype, count=8)
    assert_agree(partial(functional.info_nce, negatives=queue, temperature=0.2), theirs, z1, z2)
    queue.enqueue_(normalize(z2))
    torch.testing.assert_close(queue.queue, theirs.memory_bank.bank)


@every_dtype
@every_temperature
def test_lightly_dcl(dtype, temperature):
    # Factor 1: the mean of both directions, each a mean over N, is the mean over 2N.
    ours = partial(functional.dcl, temperature=temperature)
    assert_agree(ours, DCLLoss(temperature), *two_views(dtype))


@every_dtype
@every_temperature
@pytest.mark.parametrize("sigma", [0.5, 0.9])
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # lightly's weights
def test_lightly_dclw(dtype, temperature, sigma):
    # Factor 1.
    ours = partial(functional.dcl, temperature=temperature, sigma=sigma)
    assert_agree(ours, DCLWLoss(temperature, sigma), *two_views(dtype))


@every_dtype
@every_temperature
def test_metric_learning_nt_xent(dtype, temperature):
    # Factor 1: the mean over positive pairs is the mean over rows, each of which has one.
    loss = metric_learning.NTXentLoss(temperature)
    views = two_views(dtype)
    assert_agree(partial(functional.nt_xent, temperature=temperature), metric_learning.SelfSupervisedLoss(loss), *views)
    one_sided = metric_learning.SelfSupervisedLoss(loss, symmetric=False)
    assert_agree(partial(functional.info_nce, temperature=temperature), one_sided, *views)


@every_dtype
@every_temperature
def test_metric_learning_sup_con(dtype, temperature):
    # Factor 1 of the mean over rows with a positive: its reducer leaves out the losses that are 0.
    features, labels = torch.randn(12, 10, dtype=dtype), torch.tensor([4, 1, 1, 0, 2, 1, 0, 3, 4, 4, 5, 1])
    theirs = partial(metric_learning.SupConLoss(temperature), labels=labels)
    ours = partial(functional.supcon, labels=labels, temperature=temperature)
    assert_agree(partial(ours, count_without_positive=False), theirs, features)
    # Where all rows count, 9 of 12 have one.
    assert_agree(ours, theirs, features, factor=12 / 9)


@every_dtype
def test_metric_learning_sup_con_of_views(dtype):
    # Factor 1.
    theirs = metric_learning.SelfSupervisedLoss(metric_learning.SupConLoss(0.1))
    assert_agree(lambda a, b: functional.supcon(torch.stack([a, b], 1), None, 0.1), theirs, *two_views(dtype))


# Codebases


def sup_contrast(features, same, temperature, base_temperature=0.07):
    """SupContrast's losses.py: features (B, V, D) that the caller normalised, same (B, B) the mask of one class."""
    rows, views = torch.cat(features.unbind(1)), features.shape[1]
    logits, itself = rows @ rows.T / temperature, torch.eye(len(rows), dtype=torch.bool)
    positive = same.repeat(views, views) & ~itself
    log_probability = logits - logits.exp().masked_fill(itself, 0).sum(1, keepdim=True).log()
    mean = log_probability.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
    return -(temperature / base_temperature) * mean.mean()


@every_dtype
@every_temperature
@pytest.mark.parametrize(("views", "labelled"), [(1, True), (2, True), (3, True), (2, False), (3, False)])
def test_sup_contrast(dtype, temperature, views, labelled):
    # Factor temperature / base_temperature, whose default is 0.07. Rows without a positive count.
    features, labels = torch.randn(9, views, 10, dtype=dtype), torch.tensor([2, 0, 1, 0, 2, 2, 0, 5, 4])
    labels = labels if labelled else None
    same = torch.eye(9, dtype=torch.bool) if labels is None else labels[:, None] == labels
    ours = partial(functional.supcon, labels=labels, temperature=temperature)
    assert_agree(
        ours, lambda z: sup_contrast(normalize(z, dim=2), same, temperature), features, factor=temperature / 0.07
    )


def hard_negatives(z1, z2, temperature, beta, tau_plus):
    """The criterion of Robinson et al.'s code, of rows that the model normalised."""
    out, images = torch.cat([z1, z2]), len(z1)
    image = torch.arange(images).repeat(2)
    neg = (out @ out.T / temperature).exp()[image[:, None] != image].view(2 * images, -1)
    pos = ((z1 * z2).sum(1) / temperature).exp().repeat(2)
    count = 2 * images - 2
    importance = neg**beta
    reweighted = (importance * neg).sum(1) / importance.mean(1)
    ng = (-tau_plus * count * pos + reweighted) / (1 - tau_plus)
    ng = ng.clamp_min(count * math.exp(-1 / temperature))
    return -(pos / (pos + ng)).log().mean()


@every_dtype
@pytest.mark.parametrize(("beta", "tau_plus"), [(1.0, 0.1), (0.5, 0.0), (0.0, 0.1), (2.0, 0.3)])
def test_hard_negatives(dtype, beta, tau_plus):
    # Factor 1: the mean over 2N. In the last case some rows are at the floor of the negatives' sum.
    ours = partial(functional.hard_negative_nt_xent, temperature=0.5, beta=beta, tau_plus=tau_plus)
    assert_agree(ours, lambda a, b: hard_negatives(normalize(a), normalize(b), 0.5, beta, tau_plus), *two_views(dtype))


def paired_features(dtype):
    """Rows of norms near 1 but not 1, as open_clip's losses normalise nothing."""
    a, b = two_views(dtype)
    return a / 3, b / 4


@every_dtype
def test_open_clip(dtype):
    # Factor 1: half of both directions' means over N. logit_scale is 1 / temperature and gets its gradient.
    def theirs(images, texts, logit_scale):
        logits, labels = logit_scale * images @ texts.T, torch.arange(len(images))
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2

    inputs = *paired_features(dtype), torch.tensor(14.3, dtype=dtype)
    assert_agree(lambda a, b, scale: functional.clip(a, b, 1 / scale, normalize=False), theirs, *inputs)
    assert_agree(ssl_fast.ClipLoss(normalize=False), theirs, *inputs)
    assert_agree(ssl_fast.ClipLoss(), lambda a, b, scale: theirs(normalize(a), normalize(b), scale), *inputs)


@every_dtype
def test_open_clip_sig_lip(dtype):
    # Factor 1: the sum over all pairs by the number of images.
    def theirs(images, texts, logit_scale, logit_bias):
        logits = logit_scale * images @ texts.T + logit_bias
        return -logsigmoid((2 * torch.eye(len(images), dtype=images.dtype) - 1) * logits).sum() / len(images)

    def ours(a, b, scale, bias, normalize=False):
        return functional.siglip(a, b, 1 / scale, bias=bias, normalize=normalize)

    inputs = *paired_features(dtype), *torch.tensor([10.0, -3.0], dtype=dtype)
    assert_agree(ours, theirs, *inputs)
    assert_agree(partial(ours, normalize=True), lambda a, b, *s: theirs(normalize(a), normalize(b), *s), *inputs)


@every_dtype
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_moco_v3(dtype, temperature):
    # Factor 1: 2 * temperature is in both. Its keys get no gradient.
    def contrastive_loss(q, k):
        logits = normalize(q) @ normalize(k).T / temperature
        return cross_entropy(logits, torch.arange(len(q))) * 2 * temperature

    (q1, q2), (k1, k2) = two_views(dtype), two_views(dtype)
    ours = partial(functional.moco_v3, key1=k1, key2=k2, temperature=temperature)
    assert_agree(ours, lambda q1, q2: contrastive_loss(q1, k2) + contrastive_loss(q2, k1), q1, q2)
    # solo-learn's mocov3_loss_func is one direction.
    ours = partial(functional.info_nce, positive=k2, temperature=temperature)
    assert_agree(ours, lambda q: contrastive_loss(q, k2), q1, factor=2 * temperature)


@every_dtype
@every_temperature
def test_google_simclr(dtype, temperature):
    # Factor 2: the sum, not the mean, of both directions' means over N.
    def theirs(a, b):
        a, b = normalize(a), normalize(b)
        large, labels = 1e9 * torch.eye(len(a), dtype=dtype), torch.arange(len(a))
        of_a = torch.cat([a @ b.T / temperature, a @ a.T / temperature - large], 1)
        of_b = torch.cat([b @ a.T / temperature, b @ b.T / temperature - large], 1)
        return cross_entropy(of_a, labels) + cross_entropy(of_b, labels)

    assert_agree(partial(functional.nt_xent, temperature=temperature), theirs, *two_views(dtype), factor=2)


@every_dtype
@every_temperature
def test_solo_learn_moco_v2_plus(dtype, temperature):
    # Factor 1. The caller normalises; the queue is (D, K).
    queue = NegativeQueue(40, 10, dtype=dtype, seed=1)

    def theirs(query, key):
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.queue.T], 1) / temperature
        return cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))

    ours = partial(functional.info_nce, negatives=queue, temperature=temperature)
    assert_agree(ours, lambda q, k: theirs(normalize(q), normalize(k)), *two_views(dtype))


@every_dtype
@pytest.mark.parametrize("views", [2, 3])
def test_solo_learn_simclr(dtype, views):
    # Factor 1, less log(views - 1): the sum, not the mean, of the positives is inside the log.
    def theirs(z):
        rows, image = normalize(torch.cat(z.unbind(1))), torch.arange(len(z)).repeat(views)
        similarity = (rows @ rows.T / 0.2).exp()
        same, itself = image[:, None] == image, torch.eye(len(rows), dtype=torch.bool)
        of_positives = (similarity * (same & ~itself)).sum(1)
        return -(of_positives / (of_positives + (similarity * ~same).sum(1))).log().mean()

    ours = partial(functional.supcon, temperature=0.2, form="in")
    offset = -math.log(views - 1)
    assert_agree(ours, theirs, torch.randn(8, views, 10, dtype=dtype), offset=offset)


@every_dtype
def test_cmc_nce_criterion(dtype):
    # Factor 1: the sum over the noise and the mean over the batch. Its eps of 1e-7 beside m / n is not in the paper.
    images, number, normalizer = 30, 8, 25.0
    bank = normalize(torch.randn(images, 10, dtype=dtype))
    index, noise = torch.randint(images, (6,)), torch.randint(images, (6, number))

    def theirs(z, eps):
        rows = bank[torch.cat([index[:, None], noise], 1)]
        x = ((rows * normalize(z)[:, None]).sum(2) / 0.2).exp() / normalizer
        of_noise = number * (1 / images)
        of_data = (x[:, 0] / (x[:, 0] + of_noise + eps)).log().sum()
        return -(of_data + (of_noise / (x[:, 1:] + of_noise + eps)).log().sum()) / len(z)

    given = {"index": index, "noise": noise, "bank": bank, "normalizer": normalizer}
    ours = partial(functional.instance_nce, **given, temperature=0.2)
    features = torch.randn(6, 10, dtype=dtype)
    assert_agree(ours, lambda z: theirs(z, 0.0), features)
    assert_agree(ours, lambda z: theirs(z, 1e-7), features, tolerance=2e-5)


@every_dtype
def test_lemniscate_linear_average(dtype):
    # Factor 1: the mean over the batch of the cross entropy over all images.
    bank, index = normalize(torch.randn(30, 10, dtype=dtype)), torch.tensor([3, 29, 0, 3, 11, 7])
    ours = partial(functional.instance_discrimination, index=index, bank=bank, temperature=0.07)
    features = torch.randn(6, 10, dtype=dtype)
    assert_agree(ours, lambda z: cross_entropy(normalize(z) @ bank.T / 0.07, index), features)
