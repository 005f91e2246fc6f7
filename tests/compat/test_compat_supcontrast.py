"""ssl_fast.compat.supcontrast beside the formula of their losses.py in plain lines; that file is on no index."""

import copy
import inspect
import pickle
import re
import sys

import pytest
import torch
from agreement import with_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from watch import Watch

import ssl_fast
from ssl_fast.compat.supcontrast import SupConLoss
from tests.helpers.examples import losses, number, run_example
from tests.helpers.strategies import LAYOUTS, lay_out


def plain(features, labels=None, mask=None, temperature=0.07, contrast_mode="all", base_temperature=0.07):
    """With the matrix; the largest logit that is subtracted may be the anchor's with itself, as in their file."""
    count, views = features.shape[:2]
    rows = torch.cat(features.flatten(2).unbind(1))  # view by view
    anchors = rows if contrast_mode == "all" else rows[:count]
    if mask is None:
        mask = torch.eye(count) if labels is None else labels.view(-1, 1) == labels.view(1, -1)
    positive = mask.to(rows.dtype).repeat(len(anchors) // count, views)
    positive[torch.arange(len(anchors)), torch.arange(len(anchors))] = 0
    logits = anchors @ rows.T / temperature
    logits = logits - logits.amax(1, keepdim=True).detach()
    others = logits.exp() * (1 - torch.eye(len(rows), dtype=rows.dtype)[: len(anchors)])
    log_probability = logits - others.sum(1, keepdim=True).log()
    number = positive.sum(1)
    mean = (positive * log_probability).sum(1) / torch.where(number < 1e-6, 1, number)
    return -(temperature / base_temperature) * mean.mean()


def features_of(seed, count, views, dim, dtype=torch.float32, length=1.0):
    generator = torch.Generator().manual_seed(seed)
    return length * normalize(torch.randn(count, views, dim, generator=generator, dtype=dtype), dim=2)


def targets_of(kind, seed, count):
    generator = torch.Generator().manual_seed(seed)
    return {
        "nothing": {},
        "labels": {"labels": torch.randint(3, (count,), generator=generator)},
        "labels of floats": {"labels": torch.randint(3, (count, 1), generator=generator) / 7},
        "mask": {"mask": torch.rand(count, count, generator=generator) < 0.4},
        "weights": {"mask": torch.randint(4, (count, count), generator=generator) / 4},
    }[kind]


KINDS = ["nothing", "labels", "labels of floats", "mask", "weights"]


@given(
    st.integers(1, 10),
    st.integers(1, 3),
    st.integers(1, 8),
    st.one_of(st.floats(0.05, 1), st.floats(-1, -0.05)),
    st.sampled_from(["all", "one"]),
    st.floats(0.05, 1),
    st.sampled_from(KINDS),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(0.5, 1.5),
    st.integers(0, 2**31 - 1),
)
def test_values_and_gradients(count, views, dim, temperature, mode, base, kind, dtype, length, seed):
    if count * views == 1:
        return  # theirs is NaN
    features, targets = features_of(seed, count, views, dim, dtype, length), targets_of(kind, seed, count)
    options = {"temperature": temperature, "contrast_mode": mode, "base_temperature": base}
    value, (gradient,) = with_gradients(lambda x: SupConLoss(**options)(x, **targets), [features])
    expected, (truth,) = with_gradients(lambda x: plain(x, **targets, **options), [features])
    if not expected.isfinite():
        assert value.isfinite()
        return
    assert value.dtype == dtype
    assert value.shape == ()
    relative = {torch.float64: 1e-11, torch.float32: 1e-5}[dtype]
    # A loss near 0 is a difference of logits, whose rounding bounds it.
    for got, exact, least in ((value, expected, length**2 / base), (gradient, truth, 1 / base)):
        scale = max(exact.abs().max().item(), 0.1 * least)
        torch.testing.assert_close(got, exact, rtol=0, atol=relative * scale)


@pytest.mark.parametrize("views", [2, 3])
def test_without_labels_it_is_nt_xent_of_several_views_by_the_factor(views):
    features = features_of(0, 8, views, 5)
    scaled, unscaled = SupConLoss(0.5)(features), SupConLoss(0.5, base_temperature=0.5)(features)
    torch.testing.assert_close(scaled, unscaled * 0.5 / 0.07)
    torch.testing.assert_close(unscaled, ssl_fast.functional.supcon(features, None, 0.5))
    if views == 2:
        torch.testing.assert_close(unscaled, ssl_fast.functional.nt_xent(*features.unbind(1), 0.5))


def test_features_are_not_normalised():
    features = features_of(0, 6, 2, 5, length=2.0)
    torch.testing.assert_close(SupConLoss(1.0)(features), plain(features, temperature=1.0))
    assert (SupConLoss(1.0)(features) - SupConLoss(1.0)(normalize(features, dim=2))).abs() > 0.1


def test_anchors_without_positives_are_0_and_count():
    features, labels = features_of(0, 5, 1, 4), torch.tensor([0, 0, 1, 2, 3])
    of_two = SupConLoss()(features, labels)
    torch.testing.assert_close(of_two, ssl_fast.functional.supcon(features[:, 0], labels, 0.07))
    assert SupConLoss()(features, torch.arange(5)) == 0  # not NaN, as before their pull request 142
    value, (gradient,) = with_gradients(lambda x: SupConLoss()(x, torch.arange(5)), [features])
    assert value == 0
    assert not gradient.any()


def test_signatures_and_attributes():
    def parameters(call):
        return [(p.name, p.default) for p in inspect.signature(call).parameters.values()]

    options = [("temperature", 0.07), ("contrast_mode", "all"), ("base_temperature", 0.07)]
    assert parameters(SupConLoss) == options
    loss = SupConLoss()
    assert parameters(loss.forward) == [("features", inspect.Parameter.empty), ("labels", None), ("mask", None)]
    assert [(name, getattr(loss, name)) for name, _ in options] == options
    assert not loss.state_dict()


def test_errors():
    features, labels = features_of(0, 4, 2, 3), torch.arange(4)
    cases = [
        ((features[:, 0],), {}, "`features` needs to be [bsz, n_views, ...],at least 3 dimensions are required"),
        ((features, labels, torch.eye(4)), {}, "Cannot define both `labels` and `mask`"),
        ((features, labels[:3]), {}, "Num of labels does not match num of features"),
        ((features,), {"contrast_mode": "two"}, "Unknown mode: two"),
    ]
    for arguments, options, text in cases:
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            SupConLoss(**options)(*arguments)
    for mask in (torch.eye(3), torch.ones(1, 4)):  # of theirs torch's RuntimeError
        with pytest.raises(ValueError, match=r"mask: expected \(4, 4\), got "):
            SupConLoss()(features, mask=mask)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_more_dimensions_are_flattened(mode):
    features = normalize(torch.randn(4, 2, 3, 2, 2).flatten(2), dim=2).view(4, 2, 3, 2, 2)
    loss = SupConLoss(contrast_mode=mode)
    torch.testing.assert_close(loss(features), loss(features.flatten(2)))
    # Theirs has a view() here and refuses other strides.
    torch.testing.assert_close(loss(features.permute(0, 1, 4, 2, 3)), loss(features))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout):
    features = lay_out(features_of(0, 5, 2, 4), layout)
    for options in ({}, {"contrast_mode": "one"}):
        torch.testing.assert_close(SupConLoss(**options)(features), plain(features, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_matrix_is_made(kind):
    count, dim = 40, 3
    features, targets = features_of(0, count, 2, dim).requires_grad_(), targets_of(kind, 0, count)
    for mode in ("all", "one"):
        with Watch() as watch:
            SupConLoss(contrast_mode=mode)(features, **targets).backward()
        # A mask that was given is cast, no more: it is not repeated for the views.
        assert watch.most <= (count * count if "mask" in targets else 2 * count * dim)


def test_where_exponentials_underflow_ours_is_right_and_theirs_is_not_finite():
    # At a low temperature an anchor's similarity with itself, 1, is so far above the others that they come to 0.
    features, labels = features_of(1, 6, 2, 8), torch.tensor([0, 1, 0, 2, 1, 2])
    assert not plain(features, labels, temperature=0.005).isfinite()
    value, (gradient,) = with_gradients(lambda x: SupConLoss(0.005)(x, labels), [features])
    exact, (truth,) = with_gradients(lambda x: plain(x, labels, temperature=0.005), [features.double()])
    torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, truth.float(), rtol=0, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize("mode", ["all", "one"])
def test_a_single_row_is_nan_in_theirs_and_0_in_ours(mode):
    features = features_of(0, 1, 1, 4)
    assert plain(features, contrast_mode=mode).isnan()
    for targets in ({}, {"labels": torch.zeros(1)}, {"mask": torch.ones(1, 1)}):
        value, (gradient,) = with_gradients(lambda x, t=targets: SupConLoss(contrast_mode=mode)(x, **t), [features])
        assert value == 0
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["nothing", "labels", "mask"])
def test_half_features_give_what_theirs_gives_in_float32(dtype, kind):
    features, targets = features_of(0, 6, 2, 5).to(dtype), targets_of(kind, 0, 6)
    value, (gradient,) = with_gradients(lambda x: SupConLoss()(x, **targets), [features])
    expected, (truth,) = with_gradients(lambda x: plain(x, **targets), [features.float()])
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
    assert gradient.dtype == dtype
    bound = torch.finfo(dtype).eps * truth.abs().max().item()
    torch.testing.assert_close(gradient.float(), truth, rtol=0, atol=2 * bound)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(SupConLoss()(features.float(), **targets), expected, rtol=1e-5, atol=0)


def test_nan_comes_through():
    for count, labels in ((4, torch.tensor([0, 0, 1, 1])), (4, torch.arange(4))):
        features = features_of(0, count, 1, 3)
        features[1, 0, 2] = float("nan")
        for mode in ("all", "one"):
            assert SupConLoss(contrast_mode=mode)(features, labels).isnan()


def test_zero_rows():
    features = features_of(0, 5, 2, 4)
    features[1] = 0
    labels = torch.tensor([0, 0, 1, 1, 2])
    torch.testing.assert_close(SupConLoss()(features, labels), plain(features, labels), rtol=1e-5, atol=0)


def test_the_same_bits_at_any_number_of_threads(one_and_two_threads):
    features, labels = features_of(0, 3000, 2, 64), torch.randint(10, (3000,))
    once, again = one_and_two_threads(lambda: with_gradients(lambda x: SupConLoss()(x, labels), [features]))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1][0], again[1][0])


def test_copies():
    loss, features = SupConLoss(0.2, "one", 0.5), features_of(0, 5, 2, 4)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(features), loss(features))


def test_patch(tmp_path, monkeypatch):
    signature = "self, temperature=0.07, contrast_mode='all', base_temperature=0.07"
    (tmp_path / "losses.py").write_text(f"class SupConLoss:\n    def __init__({signature}): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "losses", raising=False)
    try:
        import losses

        theirs = losses.SupConLoss
        with ssl_fast.patch("supcontrast"):
            assert losses.SupConLoss is SupConLoss
        assert losses.SupConLoss is theirs
    finally:
        sys.modules.pop("losses", None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("kind", ["nothing", "labels", "mask"])
def test_compile(mode, kind):
    loss, targets = SupConLoss(contrast_mode=mode), targets_of(kind, 0, 6)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    features = features_of(0, 6, 2, 5)
    (value, gradients), (expected, truths) = (
        with_gradients(lambda x, f=f: f(x, **targets), [features]) for f in (compiled, loss)
    )
    torch.testing.assert_close([value, *gradients], [expected, *truths])


@pytest.mark.slow
def test_example():
    printed = run_example("supcontrast_digits", "--steps", "60")
    first, *_, last = losses(printed)
    assert last < first
    assert number("kNN accuracy after training", printed) > number("kNN accuracy before training", printed)
