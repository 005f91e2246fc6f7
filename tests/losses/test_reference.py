"""The specification itself against the NumPy oracle; closed forms and gradients are in test_reference_forms.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ssl_fast import NegativeQueue, reference
from tests.helpers import oracle
from tests.helpers.evaluate import assert_stats
from tests.helpers.loss_cases import ALL_CASES, arguments_of, every_case, gradients_of, operator_of
from tests.helpers.strategies import KINDS, dims, embeddings, kinds, rows, seeds, temperatures

FORMS = ["in batch", "shared", "own", "queue"]
few_rows = st.integers(1, 20)
negatives = st.integers(1, 30)
forms = st.sampled_from(["out", "in"])
# Of rows that are not normalised: similarities stay near 1.
plain_kinds = st.sampled_from([kind for kind in KINDS if kind not in ("large", "mixed norms")])


def make(*sizes, kind="ordinary", seed=0):
    """Rows (*sizes[:-1], sizes[-1]) in float64."""
    return embeddings(math.prod(sizes[:-1]), sizes[-1], torch.float64, kind, seed).view(sizes)


def make_negatives(form, count, dim, negatives, kind="ordinary", seed=0):
    """The negatives of one form: None, a tensor or a queue, whose rows are no unit rows, as they are taken as is."""
    if form == "in batch":
        return None
    if form == "queue":
        queue = NegativeQueue(negatives, dim, dtype=torch.float64, seed=seed % 1000)
        queue.queue *= torch.linspace(0.5, 1.5, negatives, dtype=torch.float64)[:, None]
        return queue
    return make(*([count] if form == "own" else []), negatives, dim, kind=kind, seed=seed)


def ids_of(count, of, seed):
    """Integers (count,) below `of`, negative ones and large ones among them."""
    ids = torch.randint(of, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.where(ids % 3 == 0, ids - (1 << 40), ids)


def in_numpy(x):
    if isinstance(x, torch.Tensor):
        return x.numpy() if x.is_floating_point() else x.tolist()
    return tuple(in_numpy(each) for each in x) if isinstance(x, tuple) else x


def oracle_rows(operator, arguments, temperature) -> oracle.Rows:
    queue = arguments.get("negatives")
    if isinstance(queue, NegativeQueue):
        arguments = arguments | {"negatives": queue.queue, "as_they_are": True}
    arguments = {name: in_numpy(x) for name, x in arguments.items()}
    return getattr(oracle, operator)(**arguments, temperature=temperature)


def assert_rows(loss, expected, temperature, size=1.0):
    # Logits reach size * |s|: their rounding is the error of a loss near 0.
    tolerance = 1e-13 * max(1, size * abs(1 / temperature))
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-12, atol=tolerance)


def assert_is_the_oracle(operator, temperature, size=1.0, **arguments):
    expected = oracle_rows(operator, arguments, temperature)
    function = getattr(reference, operator)
    loss, stats = function(**arguments, temperature=temperature, reduction="none", return_stats=True)
    assert_rows(loss, expected.loss, temperature, size)
    assert_stats(stats, expected, temperature, torch.float64)


@given(rows, dims, kinds, temperatures, seeds)
def test_nt_xent(count, dim, kind, temperature, seed):
    z1, z2 = make(2, count, dim, kind=kind, seed=seed)
    assert_is_the_oracle("nt_xent", temperature, z1=z1, z2=z2)


@given(st.sampled_from(FORMS), few_rows, dims, negatives, kinds, temperatures, seeds, st.data())
def test_info_nce(form, count, dim, number, kind, temperature, seed, data):
    query, positive = make(2, count, dim, kind=kind, seed=seed)
    given = make_negatives(form, count, dim, number, kind, seed + 1)
    exclude = None
    if form != "own" and data.draw(st.booleans()):
        own, classes = data.draw(st.tuples(seeds, st.integers(1, 8)))
        ids = ids_of(count, classes, own)
        exclude = (ids, ids if form == "in batch" else ids_of(number, classes, own + 1))
    arguments = {"query": query, "positive": positive, "negatives": given, "exclude": exclude}
    assert_is_the_oracle("info_nce", temperature, **arguments)


@given(
    st.sampled_from(["in batch", "shared", "queue"]),
    forms, few_rows, st.integers(1, 5), dims, negatives, kinds, temperatures, seeds,
)  # fmt: skip
def test_multi_positive_info_nce(negative_form, form, count, each, dim, number, kind, temperature, seed):
    query, positives = make(count, dim, kind=kind, seed=seed), make(count, each, dim, kind=kind, seed=seed + 1)
    given = make_negatives(negative_form, count, dim, number, kind, seed + 2)
    arguments = {"query": query, "positives": positives, "negatives": given, "form": form}
    assert_is_the_oracle("multi_positive_info_nce", temperature, **arguments)


@given(rows, dims, st.integers(1, 12), forms, kinds, temperatures, seeds)
def test_supcon_of_labels(count, dim, classes, form, kind, temperature, seed):
    labels = ids_of(count, classes, seed)
    # Of no pair at all the statistics are NaN: test_reference_forms.py.
    assume(len(labels.unique()) < count)
    features = make(count, dim, kind=kind, seed=seed)
    assert_is_the_oracle("supcon", temperature, features=features, labels=labels, form=form)


@given(few_rows, st.integers(2, 4), dims, st.integers(0, 5), forms, kinds, temperatures, seeds)
def test_supcon_of_views(count, views, dim, classes, form, kind, temperature, seed):
    labels = ids_of(count, classes, seed) if classes else None
    features = make(count, views, dim, kind=kind, seed=seed)
    assert_is_the_oracle("supcon", temperature, features=features, labels=labels, form=form)


@given(st.integers(2, 40), dims, kinds, temperatures, st.none() | st.floats(0.1, 2), seeds)
def test_dcl(count, dim, kind, temperature, sigma, seed):
    z1, z2 = make(2, count, dim, kind=kind, seed=seed)
    # Weights reach count and are as exact as the logits of their softmax.
    size = 1 if sigma is None else count * max(1, 1 / sigma)
    assert_is_the_oracle("dcl", temperature, size, z1=z1, z2=z2, sigma=sigma)


betas = st.sampled_from([0.0, 1.0]) | st.floats(0.01, 3)
tau_pluses = st.sampled_from([0.0, 0.1]) | st.floats(0, 0.5)


@given(st.integers(2, 15), dims, kinds, temperatures, betas, tau_pluses, seeds)
def test_hard_negative_nt_xent(count, dim, kind, temperature, beta, tau_plus, seed):
    z1, z2 = make(2, count, dim, kind=kind, seed=seed)
    size = 10 * (1 + beta)
    arguments = {"z1": z1, "z2": z2, "beta": beta, "tau_plus": tau_plus}
    assert_is_the_oracle("hard_negative_nt_xent", temperature, size, **arguments)


@pytest.mark.parametrize(
    ("temperature", "dtype"), [(1e-3, torch.float64), (-1e-3, torch.float64), (0.01, torch.float32)]
)
def test_debiased_hard_negatives_at_small_temperatures(temperature, dtype):
    # Most exponentials are 0 in this dtype, beside the largest that there can be.
    z1, z2 = make(2, 12, 16).to(dtype)
    for tau_plus in (0.01, 0.1, 0.5):
        arguments = {"z1": z1.double(), "z2": z2.double(), "beta": 1.0, "tau_plus": tau_plus}
        expected = oracle_rows("hard_negative_nt_xent", arguments, temperature).loss
        loss = reference.hard_negative_nt_xent(z1, z2, temperature, beta=1.0, tau_plus=tau_plus, reduction="none")
        scale = torch.finfo(dtype).eps / abs(temperature)
        np.testing.assert_allclose(loss.numpy(), expected, rtol=0, atol=20 * scale)


@given(rows, dims, kinds, plain_kinds, st.booleans(), temperatures, seeds)
def test_clip(count, dim, kind, plain_kind, normalize, temperature, seed):
    a, b = make(2, count, dim, kind=kind if normalize else plain_kind, seed=seed)
    assert_is_the_oracle("clip", temperature, 1 if normalize else dim, a=a, b=b, normalize=normalize)


@given(rows, dims, kinds, plain_kinds, st.booleans(), temperatures, st.floats(-12, 12), seeds)
def test_siglip(count, dim, kind, plain_kind, normalize, temperature, bias, seed):
    a, b = make(2, count, dim, kind=kind if normalize else plain_kind, seed=seed)
    size = count * (1 if normalize else dim)
    assert_is_the_oracle("siglip", temperature, size, a=a, b=b, bias=bias, normalize=normalize)


@given(few_rows, dims, kinds, temperatures, seeds)
def test_moco_v3(count, dim, kind, temperature, seed):
    names = ("query1", "query2", "key1", "key2")
    assert_is_the_oracle(
        "moco_v3", temperature, **dict(zip(names, make(4, count, dim, kind=kind, seed=seed), strict=True))
    )


@given(few_rows, st.integers(1, 40), dims, kinds, plain_kinds, temperatures, seeds)
def test_instance_discrimination(count, images, dim, kind, plain_kind, temperature, seed):
    index = ids_of(count, images, seed) % images
    features, bank = make(count, dim, kind=kind, seed=seed), make(images, dim, kind=plain_kind, seed=seed + 1)
    assert_is_the_oracle("instance_discrimination", temperature, dim, features=features, index=index, bank=bank)


@given(
    few_rows, st.integers(1, 40), negatives, dims, kinds, plain_kinds, temperatures, st.floats(0.01, 1e5), seeds
)  # fmt: skip
def test_instance_nce(count, images, number, dim, kind, plain_kind, temperature, normalizer, seed):
    features, bank = make(count, dim, kind=kind, seed=seed), make(images, dim, kind=plain_kind, seed=seed + 1)
    index = ids_of(count, images, seed) % images
    noise = (ids_of(count * number, images, seed + 2) % images).view(count, number)
    arguments = {"features": features, "index": index, "noise": noise, "bank": bank, "normalizer": normalizer}
    assert_is_the_oracle("instance_nce", temperature, number * dim, **arguments)


@given(
    few_rows, few_rows, dims, kinds, plain_kinds, temperatures, seeds, st.booleans(), st.booleans(),
    st.sampled_from(["all", "self", "exclude", "only"]), st.integers(1, 6),
)  # fmt: skip
def test_similarity_lse(count, others, dim, kind, plain_kind, temperature, seed, normalize, symmetric, mask, classes):
    a = make(count, dim, kind=kind if normalize else plain_kind, seed=seed)
    b = a if symmetric else make(others, dim, kind=kind if normalize else plain_kind, seed=seed + 1)
    ids = ids_of(count, classes, seed)
    ids = (ids, ids if symmetric else ids_of(others, classes, seed + 1))
    which = {"all": {}, "self": {"exclude": "self"}, "exclude": {"exclude": ids}, "only": {"only": ids}}[mask]
    arguments = {"a": a, "b": b, "scale": 1 / temperature, "normalize": normalize, **which}
    expected = oracle.similarity_lse(**{name: in_numpy(x) for name, x in arguments.items()}, symmetric=symmetric)
    found = reference.similarity_lse(**arguments, columns=True)
    for got, truth in zip(found, expected, strict=True):
        assert_rows(got, truth, temperature, 1 if normalize else dim)
    torch.testing.assert_close(reference.similarity_lse(**arguments), found[0], rtol=0, atol=0)


@every_case(of=list(ALL_CASES))
def test_reductions(case):
    arguments = arguments_of(case, count=7, negatives=9, dim=5, dtype=torch.float64)
    function, loss = getattr(reference, operator_of(case)), oracle_rows(operator_of(case), arguments, 0.2).loss
    for reduction in ("none", "mean", "sum"):
        got = function(**arguments, temperature=0.2, reduction=reduction)
        np.testing.assert_allclose(got.numpy(), oracle.reduce(loss, reduction), rtol=1e-12)


@pytest.mark.parametrize("form", ["out", "in"])
def test_rows_without_positive_count_or_do_not(form):
    features, labels = make(9, 5), torch.tensor([3, 1, 3, 2, 1, 7, 3, 8, 9])
    rows = oracle.supcon(features.numpy(), labels.tolist(), 0.2, form)
    counted = sum(bool(positives) for positives in rows.positives)
    assert counted == 5
    for count_without_positive, divisor in ((True, None), (False, counted)):
        for reduction in ("none", "mean", "sum"):
            got = reference.supcon(
                features, labels, 0.2, form=form, count_without_positive=count_without_positive, reduction=reduction
            )
            np.testing.assert_allclose(got.numpy(), oracle.reduce(rows.loss, reduction, divisor), rtol=1e-12)


@every_case(of=list(ALL_CASES))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows_are_nan_as_in_the_oracle(case, bad):
    operator, options = operator_of(case), {"count": 6, "negatives": 8, "dim": 4, "dtype": torch.float64}
    names = [name for name, x in arguments_of(case, **options).items() if embeddings_of(x) is not None]
    assert set(names) >= set(gradients_of(case))
    for name in names:
        arguments = arguments_of(case, **options)
        embeddings_of(arguments[name]).view(-1, 4)[2, 1] = bad
        loss = getattr(reference, operator)(**arguments, temperature=0.3, reduction="none")
        assert loss.isnan().any(), name
        assert_rows(loss, oracle_rows(operator, arguments, 0.3).loss, 0.3)


def embeddings_of(x):
    x = x.queue if isinstance(x, NegativeQueue) else x
    return x if isinstance(x, torch.Tensor) and x.is_floating_point() else None
