"""kNN, linear probe, alignment and uniformity against what can be counted by hand, and other implementations."""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import normalize

from ssl_fast.train.evaluation import metrics
from ssl_fast.train.evaluation.features import encode, encode_batches


def test_knn_by_hand():
    # Angles of 0, 40 and 50 degrees from the test row; the nearest is of class 0, two of class 1.
    angles = torch.tensor([0.0, 40.0, 50.0]) * math.pi / 180
    train = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[2.0], [0.1], [7.0]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 0.0]])
    # Cold, the nearest outvotes the two: e^(1/t) > e^(0.77/t) + e^(0.64/t). Warm, it does not.
    assert metrics.knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temperature=0.07) == 1
    assert metrics.knn_accuracy(train, labels, test, torch.tensor([1]), k=3, temperature=10.0) == 1
    # Only the nearest is asked.
    assert metrics.knn_accuracy(train, labels, test, torch.tensor([0]), k=1, temperature=10.0) == 1
    # More neighbours than there are rows; so are the defaults, those of the paper.
    assert metrics.knn_accuracy(train, labels, test, torch.tensor([1]), k=200, temperature=10.0) == 1
    assert metrics.knn_accuracy(train, labels, test, torch.tensor([0])) == 1


def votes_of_scikit_learn(temperature):
    def votes(distances):  # of unit rows: cosine = 1 - distance^2 / 2
        return ((1 - torch.from_numpy(distances).square() / 2) / temperature).exp().numpy()

    return votes


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_is_scikit_learns(k, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", 300 * 64)  # 64 test rows at once, and a rest
    train, test = torch.randn(300, 12), torch.randn(1500, 12)
    train_labels, test_labels = torch.randint(5, (300,)), torch.randint(5, (1500,))
    classifier = KNeighborsClassifier(k, weights=votes_of_scikit_learn(0.2), algorithm="brute")
    classifier.fit(normalize(train.double()).numpy(), train_labels.numpy())
    expected = classifier.score(normalize(test.double()).numpy(), test_labels.numpy())
    got = metrics.knn_accuracy(train.double(), train_labels, test.double(), test_labels, k=k, temperature=0.2)
    assert got == pytest.approx(expected, abs=1e-9)


def test_knn_makes_no_larger_matrix_than_a_chunk(monkeypatch):
    seen = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", 1000)
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, k: seen.append(x.numel()) or topk(x, k))
    metrics.knn_accuracy(torch.randn(90, 4), torch.arange(90) % 3, torch.randn(70, 4), torch.arange(70) % 3, k=5)
    assert len(seen) == 7  # 11 rows of 90 at once
    assert max(seen) <= 1000


def test_knn_of_a_temperature_whose_weights_overflow():
    # The votes of both are infinite in float32, and the farther one's class comes first.
    train, labels = torch.tensor([[1.0, 0.0], [0.9, 0.4]]), torch.tensor([1, 0])
    test, right = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    assert metrics.knn_accuracy(train, labels, test, right, k=2, temperature=1e-4) == 1
    # Half precision is widened.
    assert metrics.knn_accuracy(train.half(), labels, test.half(), right, k=2, temperature=1e-4) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k: expected at least 1, got 0"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0, got 0"),
        ({"temperature": math.nan}, "temperature: .* got nan"),
        ({"train_labels": torch.tensor([0, -1])}, "train_labels: expected labels from 0, got -1"),
        ({"test_labels": torch.zeros(3, dtype=torch.int64)}, r"test_features, test_labels: .* \(2, 2\) and \(3,\)"),
        ({"train_features": torch.tensor([[1.0, 0], [math.nan, 0]])}, "train_features: expected finite"),
        ({"test_features": torch.empty(0, 2), "test_labels": torch.empty(0, dtype=torch.int64)}, "N from 1"),
    ],
)
def test_knn_refuses(changes, message):
    rows, labels = torch.eye(2), torch.tensor([0, 1])
    good = {"train_features": rows, "train_labels": labels, "test_features": rows, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        metrics.knn_accuracy(**{**good, **changes})


@pytest.mark.parametrize(("per_class", "k"), [(500, 200), (200, 200), (199, 20), (20, 20), (7, 7), (1, 1)])
def test_the_published_k_where_a_class_has_the_rows(per_class, k):
    assert metrics.neighbours(torch.arange(4).repeat(per_class)) == k


def test_linear_probe_needs_a_linear_border():
    x = torch.randn(400, 2)
    linear = (x[:, 0] > 0.3 * x[:, 1]).long()
    ring = (x.norm(dim=1) > 1.2).long()
    for scale in (1.0, 1e-4):  # features are standardised
        assert metrics.logistic_regression_accuracy(x[:200] * scale, linear[:200], x[200:] * scale, linear[200:]) > 0.95
    assert metrics.logistic_regression_accuracy(x[:200], ring[:200], x[200:], ring[200:]) < 0.8


def layers():
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten())
    encoder[2].eval()
    return encoder


def test_features_in_eval_mode_leave_every_mode_and_statistic():
    encoder = layers()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.randn(11, 1, 5, 5)
    features = encode(encoder, images, batch_size=4)
    assert [module.training for module in encoder] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not features.requires_grad
    torch.testing.assert_close(features, encoder.eval()(images), rtol=1e-5, atol=1e-5)


def test_features_of_batches_are_those_of_the_labelled_images():
    encoder = layers()
    images, labels = torch.randn(9, 1, 5, 5), torch.tensor([3, -1, 0, -1, -1, -1, 1, 2, 0])
    batches = list(zip(images.split(3), labels.split(3), strict=True))  # the second has no label at all
    features, kept = encode_batches(encoder, iter(batches))
    assert kept.tolist() == [3, 0, 1, 2, 0]
    assert not features.requires_grad
    assert [module.training for module in encoder] == [True, True, False, True]
    torch.testing.assert_close(features, encode(encoder, images[labels >= 0]))
    features, kept = encode_batches(encoder, batches, only_labelled=False)
    assert torch.equal(kept, labels)
    torch.testing.assert_close(features, encode(encoder, images))


def test_features_of_half_precision_are_float32():
    features, _ = encode_batches(nn.Flatten(), [(torch.ones(2, 1, 1, 1).bfloat16(), torch.zeros(2))])
    assert features.dtype == torch.float32


def test_no_labelled_image():
    with pytest.raises(ValueError, match="batches: expected labelled images, got none"):
        encode_batches(nn.Flatten(), [(torch.zeros(2, 1, 1, 1), torch.full((2,), -1))])


def test_modes_return_after_an_error():
    encoder = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    for call in (encode, lambda encoder, images: encode_batches(encoder, [(images, torch.zeros(4))])):
        with pytest.raises(RuntimeError):
            call(encoder, torch.randn(4, 5))
        assert encoder[1].training
    assert torch.is_grad_enabled()


def test_label_fraction_is_stratified_and_has_every_class():
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate([400, 100, 30, 1])])
    labels = torch.cat([labels, torch.full((50,), -1)])[torch.randperm(581)]
    drawn = metrics.label_fraction(labels, 0.1, seed=3)
    assert torch.bincount(labels[drawn]).tolist() == [40, 10, 3, 1]
    assert drawn.unique().tolist() == drawn.tolist()  # rising, each once
    assert torch.equal(drawn, metrics.label_fraction(labels, 0.1, seed=3))
    assert not torch.equal(drawn, metrics.label_fraction(labels, 0.1, seed=4))
    assert torch.bincount(labels[metrics.label_fraction(labels, 0.01)]).tolist() == [4, 1, 1, 1]
    assert torch.equal(metrics.label_fraction(labels, 1.0), (labels >= 0).nonzero().flatten())


def test_label_fraction_leaves_the_callers_randomness():
    state = torch.get_rng_state()
    metrics.label_fraction(torch.arange(10), 0.5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, math.nan])
def test_no_such_fraction(fraction):
    with pytest.raises(ValueError, match="fraction: expected a number above 0 and up to 1"):
        metrics.label_fraction(torch.arange(3), fraction)


def test_alignment_by_hand():
    u = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    assert metrics.alignment(u, 3 * u) == 0
    assert metrics.alignment(u, -u) == pytest.approx(4)  # squared, of the diameter
    assert metrics.alignment(u, u.flip(0)) == pytest.approx(2)
    assert metrics.alignment(u, torch.stack([u[0], -u[1]])) == pytest.approx(2)  # a mean over the rows


def test_uniformity_is_that_of_the_papers_pairs(monkeypatch):
    x = torch.randn(157, 5)
    expected = torch.pdist(normalize(x.double())).square().mul(-2).exp().mean().log().item()
    for chunk in (157 * 157, 157 * 10, 157, 1):  # whole, with a rest, a row, and less than a row
        monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", chunk)
        assert metrics.uniformity(3 * x) == pytest.approx(expected, abs=1e-5)


def test_uniformity_at_its_ends():
    assert metrics.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)
    assert metrics.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)
    assert metrics.uniformity(torch.randn(500, 256)) == pytest.approx(-4, abs=0.05)


def test_geometry_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"features1, features2: .* got \(2, 3\) and \(2, 2\)"):
        metrics.alignment(torch.ones(2, 3), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"features: expected \(N, D\), N from 2, got \(1, 3\)"):
        metrics.uniformity(torch.ones(1, 3))
