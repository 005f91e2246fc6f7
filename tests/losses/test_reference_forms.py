"""The specification itself: closed forms, losses that are cases of others, PyTorch's losses, finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, softplus

from ssl_fast import NegativeQueue, reference
from ssl_fast.formulas.rows import unit_rows
from tests.helpers.loss_cases import ALL_CASES, arguments_of, gradients_of, operator_of

both_forms = pytest.mark.parametrize("form", ["out", "in"])


def randn(*sizes):
    return torch.randn(*sizes, dtype=torch.float64)


def assert_same(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


# Closed forms


def equal_rows(temperature):
    """(operator, its arguments, the loss): all rows are equal, so that every candidate is as likely as the positive."""
    z = randn(4).expand(7, 4)
    two, labels, index = z[:, None].expand(7, 2, 4), torch.tensor([0, 0, 0, 0, 1, 1, 1]), torch.arange(7)
    s, unit = 1 / temperature, normalize(z)
    bce = math.log1p(math.exp(-(s - 1))) + 6 * math.log1p(math.exp(s - 1))
    nce = math.log1p(2 / 7 * 3 / math.exp(s)) + 2 * math.log1p(math.exp(s) / (2 / 7 * 3))
    return [
        ("nt_xent", (z, z), math.log(2 * 7 - 1)),
        ("info_nce", (z, z), math.log(7)),
        ("info_nce", (z, z, z[:1].expand(11, 4)), math.log(1 + 11)),
        ("multi_positive_info_nce", (z, two), math.log(7 * 2)),
        ("moco_v3", (z, z, z, z), 2 * 2 * temperature * math.log(7)),
        ("supcon", (z, labels), math.log(7 - 1)),
        ("supcon", (two,), math.log(7 * 2 - 1)),
        ("dcl", (z, z), math.log(2 * 7 - 2)),
        ("hard_negative_nt_xent", (z, z), math.log(2 * 7 - 1)),
        ("clip", (z, z), math.log(7)),
        ("siglip", (z, z), bce),
        ("instance_discrimination", (z, index, unit), math.log(7)),
        ("instance_nce", (z, index, torch.stack([index] * 2, 1), unit, 3.0), nce),
    ]


@pytest.mark.parametrize("temperature", [0.07, 1.0, -0.3])
def test_all_rows_equal(temperature):
    for operator, arguments, expected in equal_rows(temperature):
        given = {"temperature": temperature, **({"bias": -1.0} if operator == "siglip" else {})}
        loss, stats = getattr(reference, operator)(*arguments, **given, return_stats=True)
        assert loss.item() == pytest.approx(expected, rel=1e-12), operator
        assert stats.top1 == stats.top5 == 1, operator  # ties go to the positive


@pytest.mark.parametrize("temperature", [0.07, -0.3])
@both_forms
@pytest.mark.parametrize("sigma", [0.5, 3.0])
def test_options_of_equal_rows_change_nothing(temperature, form, sigma):
    z = randn(4).expand(7, 4)
    for labels in (torch.zeros(7).long(), torch.tensor([0, 0, 0, 0, 1, 1, 1])):
        loss = reference.supcon(z, labels, temperature, form=form)
        assert loss.item() == pytest.approx(math.log(6), rel=1e-12)
    # All weights are 1, all negatives weigh alike, and the share tau_plus of them is as similar as the positive.
    assert reference.dcl(z, z, temperature, sigma=sigma).item() == pytest.approx(math.log(12), rel=1e-12)
    loss = reference.hard_negative_nt_xent(z, z, temperature, beta=sigma, tau_plus=0.1)
    assert loss.item() == pytest.approx(math.log(13), rel=1e-12)


def test_orthogonal_pairs():
    z, s, index = 3 * torch.eye(5, dtype=torch.float64), 2, torch.arange(5)
    # A positive of 1 beside 2N - 2 negatives of 0, or N - 1.
    loss, stats = reference.nt_xent(z, z, 1 / s, return_stats=True)
    assert loss.item() == pytest.approx(math.log1p(8 * math.exp(-s)), rel=1e-12)
    assert (stats.positive_similarity, stats.negative_similarity) == (1, 0)
    assert reference.dcl(z, z, 1 / s).item() == pytest.approx(math.log(8) - s, rel=1e-12)
    one_sided = pytest.approx(math.log1p(4 * math.exp(-s)), rel=1e-12)
    assert reference.info_nce(z, z, None, 1 / s).item() == one_sided
    assert reference.clip(z, z, 1 / s).item() == one_sided
    assert reference.instance_discrimination(z, index, z / 3, 1 / s).item() == one_sided
    assert reference.moco_v3(z, z, z, z, 1 / s).item() == pytest.approx(4 / s * math.log1p(4 * math.exp(-s)))
    bce = math.log1p(math.exp(-(s - 1))) + 4 * math.log1p(math.exp(-1))
    assert reference.siglip(z, z, 1 / s, bias=-1.0).item() == pytest.approx(bce, rel=1e-12)
    # Two noise images of five, P / (m / n) = exp(logit) / 3 / (2 / 5).
    noise, ratio = torch.stack([index.roll(1), index.roll(2)], 1), 1 / 3 / (2 / 5)
    nce = math.log1p(1 / (ratio * math.exp(s))) + 2 * math.log1p(ratio)
    assert reference.instance_nce(z, index, noise, z / 3, 3.0, 1 / s).item() == pytest.approx(nce, rel=1e-12)
    assert reference.similarity_lse(z, z, s, exclude="self")[0].item() == pytest.approx(math.log(4), rel=1e-12)


def test_debiased_orthogonal_pairs():
    z = torch.eye(5, dtype=torch.float64)
    p, tau_plus = math.exp(0.5), 0.1
    g = 8 * (1 - tau_plus * p) / (1 - tau_plus)
    assert reference.hard_negative_nt_xent(z, z, 2.0, beta=1.0, tau_plus=tau_plus).item() == pytest.approx(
        math.log1p(g / p), rel=1e-12
    )
    # At s = 5 the share of the positive is more than there is: the floor holds.
    floor = math.log1p(8 * math.exp(-5) / math.exp(5))
    assert reference.hard_negative_nt_xent(z, z, 0.2, beta=1.0, tau_plus=tau_plus).item() == pytest.approx(
        floor, rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.1, 0.01, 1e-3])
def test_floor_of_debiased_hard_negatives(dtype, temperature):
    # The positive's similarity is 0.1, all others are 0.
    z1, z2 = torch.zeros(2, 4, 8, dtype=dtype)
    z1[:, :4], z2[:, :4] = torch.eye(4), 0.1 * torch.eye(4)
    z2[:, 4:] = 0.99**0.5 * torch.eye(4)
    z1.requires_grad_()
    loss = reference.hard_negative_nt_xent(z1, z2, temperature, beta=1.0, tau_plus=0.5)
    expected = math.log1p(6 * math.exp(-1 / temperature) / math.exp(0.1 / temperature))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    loss.backward()
    # Of the floor only the positive's share, 1 / temperature at most, and that times a loss near 0.
    assert z1.grad.abs().max() <= 2 * expected / temperature


def test_one_pair_has_no_loss():
    z1, z2 = randn(2, 1, 8)
    for operator, arguments in {
        "nt_xent": (z1, z2), "info_nce": (z1, z2), "clip": (z1, z2), "moco_v3": (z1, z2, z2, z1),
        "supcon": (torch.stack([z1, z2], 1),), "instance_discrimination": (z1, torch.tensor([0]), z2),
    }.items():  # fmt: skip
        loss, stats = getattr(reference, operator)(*arguments, return_stats=True)
        assert loss == 0, operator
        assert stats.top1 == 1, operator
        assert stats.negative_similarity.isnan(), operator


@both_forms
@pytest.mark.parametrize("count_without_positive", [True, False])
def test_supcon_without_any_positive_is_0(form, count_without_positive):
    z = randn(5, 3).requires_grad_()
    for reduction in ("none", "sum", "mean"):
        loss = reference.supcon(
            z, torch.arange(5), 0.1, form=form, count_without_positive=count_without_positive, reduction=reduction
        )
        assert_same(loss, torch.zeros_like(loss))
        assert_same(torch.autograd.grad(loss.sum(), z)[0], torch.zeros_like(z))
    _, stats = reference.supcon(z, torch.arange(5), 0.1, form=form, return_stats=True)
    assert stats.top1 == 0
    assert stats.positive_similarity.isnan()


# Losses that are cases of others


@both_forms
def test_supcon_of_two_views_is_nt_xent(form):
    z1, z2 = randn(2, 6, 5)
    # Rows of a view together there, of an image here.
    expected = reference.nt_xent(z1, z2, 0.2, reduction="none").view(2, 6).T.flatten()
    assert_same(reference.supcon(torch.stack([z1, z2], 1), None, 0.2, form=form, reduction="none"), expected)
    labels = torch.arange(6).repeat(2)
    loss = reference.supcon(torch.cat([z1, z2]), labels, 0.2, form=form, reduction="none")
    assert_same(loss, reference.nt_xent(z1, z2, 0.2, reduction="none"))


def test_supcon_forms_of_labelled_views():
    features, labels = randn(4, 3, 5), torch.tensor([1, 0, 1, 2])
    flat, repeated = features.flatten(0, 1), labels.repeat_interleave(3)
    for form in ("out", "in"):
        loss = reference.supcon(features, labels, 0.2, form=form, reduction="none")
        assert_same(loss, reference.supcon(flat, repeated, 0.2, form=form, reduction="none"))
    # Jensen: the mean inside the log is the smaller loss.
    out, inside = (reference.supcon(features, labels, 0.2, form=form) for form in ("out", "in"))
    assert inside < out


@both_forms
@pytest.mark.parametrize("negatives", ["in batch", "shared", "queue"])
def test_one_positive_is_info_nce(form, negatives):
    query, positive = randn(2, 6, 5)
    given = {"in batch": None, "shared": randn(9, 5), "queue": NegativeQueue(9, 5, dtype=torch.float64)}[negatives]
    loss, stats = reference.multi_positive_info_nce(
        query, positive[:, None], given, 0.2, form=form, reduction="none", return_stats=True
    )
    expected, expected_stats = reference.info_nce(query, positive, given, 0.2, reduction="none", return_stats=True)
    assert_same(loss, expected)
    assert_same(torch.stack(stats), torch.stack(expected_stats))


def test_dcl_and_the_positive_is_nt_xent():
    # NT-Xent's sum holds the positive too: log(1 + exp(DCL)).
    z1, z2 = randn(2, 6, 5)
    assert_same(
        softplus(reference.dcl(z1, z2, 0.2, reduction="none")), reference.nt_xent(z1, z2, 0.2, reduction="none")
    )


def test_weights_of_dclw_have_no_gradient():
    z1, z2, sigma, t = randn(6, 5).requires_grad_(), randn(6, 5), 0.5, 0.2
    positive = (normalize(z1) * normalize(z2)).sum(1)
    weights = (2 - 6 * (positive / sigma).softmax(0)).detach()
    assert weights.sum().item() == pytest.approx(6)
    expected = reference.dcl(z1, z2, t, reduction="none") + ((1 - weights) * positive / t).repeat(2)
    loss = reference.dcl(z1, z2, t, sigma=sigma, reduction="none")
    assert_same(loss, expected)
    gradient, expected_gradient = (torch.autograd.grad(x.square().sum(), z1)[0] for x in (loss, expected))
    assert_same(gradient, expected_gradient)


def test_negatives_that_weigh_alike_are_nt_xent():
    z1, z2 = randn(2, 6, 5)
    loss = reference.hard_negative_nt_xent(z1, z2, 0.2, beta=0.0, tau_plus=0.0, reduction="none")
    assert_same(loss, reference.nt_xent(z1, z2, 0.2, reduction="none"))
    # Hard negatives that weigh more are a larger loss.
    assert (reference.hard_negative_nt_xent(z1, z2, 0.2, beta=0.5, reduction="none") > loss).all()


def test_exclusion_by_ids():
    query, positive, negatives = randn(3, 6, 5)
    ids = torch.arange(6)
    for given, others in ((None, ids), (negatives, ids + 6)):
        loss = reference.info_nce(query, positive, given, 0.2, reduction="none", exclude=(ids, others))
        assert_same(loss, reference.info_nce(query, positive, given, 0.2, reduction="none"))
    # Row i without negative i.
    loss = reference.info_nce(query, positive, negatives, 0.2, reduction="none", exclude=(ids, ids))
    others = torch.stack([negatives[ids != i] for i in range(6)])
    assert_same(loss, reference.info_nce(query, positive, others, 0.2, reduction="none"))
    same = torch.zeros(6).long()
    assert_same(reference.info_nce(query, positive, negatives, 0.2, exclude=(same, same)), torch.zeros(()).double())


def test_clip_and_moco_v3_are_info_nce_both_ways():
    a, b, c, d = randn(4, 6, 5)
    both = [reference.info_nce(x, y, None, 0.2, reduction="none") for x, y in ((a, b), (b, a))]
    assert_same(reference.clip(a, b, 0.2, reduction="none"), torch.cat(both))
    assert_same(reference.clip(normalize(a), normalize(b), 0.2, normalize=False, reduction="none"), torch.cat(both))
    expected = [reference.info_nce(x, y, None, 0.2, reduction="none") for x, y in ((a, d), (b, c))]
    assert_same(reference.moco_v3(a, b, c, d, 0.2, reduction="none"), 2 * 0.2 * (expected[0] + expected[1]))


def test_similarity_lse_makes_the_losses():
    z1, z2, s, image = *randn(2, 6, 5), 5.0, torch.arange(6).repeat(2)
    z, positive = torch.cat([z1, z2]), s * (normalize(z1) * normalize(z2)).sum(1).repeat(2)
    assert_same(
        reference.similarity_lse(z, z, s, exclude="self") - positive, reference.nt_xent(z1, z2, 1 / s, reduction="none")
    )
    loss = reference.similarity_lse(z, z, s, exclude=(image, image)) - positive
    assert_same(loss, reference.dcl(z1, z2, 1 / s, reduction="none"))
    assert_same(reference.similarity_lse(z, z, s, only=(image, image)), positive)
    rows, columns = reference.similarity_lse(z1, z2, s, columns=True)
    assert_same(torch.cat([rows, columns]) - positive, reference.clip(z1, z2, 1 / s, reduction="none"))
    assert (reference.similarity_lse(z1, z2, s, only=(image[:6], image[:6] + 6)) == -math.inf).all()


# PyTorch's losses


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_cross_entropy(reduction):
    z1, z2 = randn(2, 8, 6)
    z = normalize(torch.cat([z1, z2]))
    logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    expected = cross_entropy(logits, torch.arange(16).roll(8), reduction=reduction)
    assert_same(reference.nt_xent(z1, z2, 0.1, reduction=reduction), expected)
    q, k, n, index = *normalize(randn(3, 8, 6), dim=2), torch.arange(8)
    expected = cross_entropy(q @ k.T / 0.1, index, reduction=reduction)
    assert_same(reference.info_nce(q, k, None, 0.1, reduction=reduction), expected)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / 0.1
    expected = cross_entropy(logits, torch.zeros(8, dtype=torch.int64), reduction=reduction)
    assert_same(reference.info_nce(q, k, n, 0.1, reduction=reduction), expected)
    own = index.roll(3)
    expected = cross_entropy(q @ n.T / 0.1, own, reduction=reduction)
    assert_same(reference.instance_discrimination(q, own, n, 0.1, reduction=reduction), expected)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_binary_cross_entropy(reduction):
    u, v = normalize(randn(2, 8, 6), dim=2)

    def reduced(terms):
        return terms.sum(1) if reduction == "none" else getattr(terms.sum(1), reduction)()

    terms = binary_cross_entropy_with_logits(u @ v.T / 0.1 - 3, torch.eye(8, dtype=torch.float64), reduction="none")
    assert_same(reference.siglip(u, v, 0.1, bias=-3.0, reduction=reduction), reduced(terms))
    index, noise = torch.arange(8).roll(3), torch.randint(8, (8, 5))
    logits = (u[:, None] * v[torch.cat([index[:, None], noise], 1)]).sum(2) / 0.1 - math.log(7.0 * 5 / 8)
    target = nn.functional.one_hot(torch.zeros(8, dtype=torch.int64), 6).double()
    terms = binary_cross_entropy_with_logits(logits, target, reduction="none")
    assert_same(reference.instance_nce(u, index, noise, v, 7.0, 0.1, reduction=reduction), reduced(terms))


# Finite differences


def assert_gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("temperature", [0.3, -0.7])
# The weights of DCLW are constants to autograd and not to a finite difference.
@pytest.mark.parametrize("case", [case for case in ALL_CASES if case != "dcl weighted"])
def test_gradcheck(case, temperature):
    arguments = arguments_of(case, count=5, negatives=6, dim=3, dtype=torch.float64)
    names, function = gradients_of(case), getattr(reference, operator_of(case))
    if case == "siglip":
        names, arguments["bias"] = [*names, "bias"], torch.tensor(-2.0, dtype=torch.float64)

    def loss(t, *tensors):
        return function(**arguments | dict(zip(names, tensors, strict=True)), temperature=t, reduction="none")

    t = torch.tensor(temperature, dtype=torch.float64)
    assert_gradients(loss, t, *(arguments[name] for name in names))


def test_gradcheck_of_instance_nce():
    features, bank, index, noise = randn(5, 3), randn(7, 3), torch.randint(7, (5,)), torch.randint(7, (5, 4))

    def loss(features, t):
        return reference.instance_nce(features, index, noise, bank, 3.0, t, reduction="none")

    assert_gradients(loss, features, torch.tensor(0.3, dtype=torch.float64))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mask", ["all", "self", "exclude", "only"])
def test_gradcheck_of_similarity_lse(mask, normalize):
    ids = (torch.tensor([0, 1, 1, 2, 0]), torch.tensor([1, 0, 2, 1, 5, 0]))
    which = {"all": {}, "self": {"exclude": "self"}, "exclude": {"exclude": ids}, "only": {"only": ids}}[mask]

    def lse(a, b, scale):
        rows, columns = reference.similarity_lse(a, b, scale, **which, normalize=normalize, columns=True)
        # Column 4 has the id of no row.
        return rows, columns[columns > -math.inf]

    assert_gradients(lse, randn(5, 3), randn(6, 3), torch.tensor(2.0, dtype=torch.float64))


def test_second_derivatives():
    z = randn(2, 4, 3).requires_grad_()
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z, t: reference.nt_xent(z[0], z[1], t), (z, t))


# Rows


def test_normalize_at_the_ends_of_the_range():
    x = torch.tensor([[3e38, -3e38], [3e-38, 4e-38], [0, 0], [3, 4]], dtype=torch.float32)
    u = unit_rows(x)
    expected = torch.tensor([[0.5**0.5, -(0.5**0.5)], [3e-26, 4e-26], [0, 0], [0.6, 0.8]])
    torch.testing.assert_close(u, expected, rtol=1e-6, atol=0)
    assert unit_rows(torch.tensor([[math.inf, 1.0]])).isnan().any()
