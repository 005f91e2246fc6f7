"""kNN and linear probe against what can be counted by hand, and scikit-learn's kNN."""

import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn.functional import normalize

from ssl_fast.train import evaluate


def test_knn_by_hand():
    # Angles of 0, 40 and 50 degrees from the test row; the nearest is of class 0, two of class 1.
    angles = torch.tensor([0.0, 40.0, 50.0]) * math.pi / 180
    train = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[2.0], [0.1], [7.0]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 0.0]])
    # Cold, the nearest outvotes the two: e^(1/t) > e^(0.77/t) + e^(0.64/t). Warm, it does not.
    assert evaluate.knn_accuracy(train, labels, test, torch.tensor([0]), k=3, temperature=0.07) == 1
    assert evaluate.knn_accuracy(train, labels, test, torch.tensor([1]), k=3, temperature=10.0) == 1
    # Only the nearest is asked.
    assert evaluate.knn_accuracy(train, labels, test, torch.tensor([0]), k=1, temperature=10.0) == 1
    # More neighbours than there are rows.
    assert evaluate.knn_accuracy(train, labels, test, torch.tensor([1]), k=200, temperature=10.0) == 1


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_is_scikit_learns(k):
    train, test = torch.randn(300, 12), torch.randn(1500, 12)  # more than a chunk of test rows
    train_labels, test_labels = torch.randint(5, (300,)), torch.randint(5, (1500,))

    def votes(distances):  # of unit rows: cosine = 1 - distance^2 / 2
        return ((1 - torch.from_numpy(distances).square() / 2) / 0.2).exp().numpy()

    classifier = KNeighborsClassifier(k, weights=votes, algorithm="brute")
    classifier.fit(normalize(train.double()).numpy(), train_labels.numpy())
    expected = classifier.score(normalize(test.double()).numpy(), test_labels.numpy())
    got = evaluate.knn_accuracy(train.double(), train_labels, test.double(), test_labels, k=k, temperature=0.2)
    assert got == pytest.approx(expected, abs=1e-9)


def test_linear_probe_needs_a_linear_border():
    x = torch.randn(400, 2)
    linear = (x[:, 0] > 0.3 * x[:, 1]).long()
    ring = (x.norm(dim=1) > 1.2).long()
    for scale in (1.0, 1e-4):  # features are standardised
        assert evaluate.linear_probe_accuracy(x[:200] * scale, linear[:200], x[200:] * scale, linear[200:]) > 0.95
    assert evaluate.linear_probe_accuracy(x[:200], ring[:200], x[200:], ring[200:]) < 0.8


def test_features_in_eval_mode_leave_every_mode_and_statistic():
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten())
    encoder[2].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    images = torch.randn(11, 1, 5, 5)
    features = evaluate.features(encoder, images, batch_size=4)
    assert [module.training for module in encoder] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not features.requires_grad
    torch.testing.assert_close(features, encoder.eval()(images), rtol=1e-5, atol=1e-5)


def test_modes_return_after_an_error():
    encoder = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    with pytest.raises(RuntimeError):
        evaluate.features(encoder, torch.randn(4, 5))
    assert encoder[1].training
