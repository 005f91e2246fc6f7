"""How good frozen features are: weighted k nearest neighbours and a linear probe."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..rows import unit_rows


@torch.no_grad()
def features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """The encoder's features of float images, (N, C, S, S) to (N, D), in eval mode, batch by batch.

    Every module is left in the mode that it was in.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        return torch.cat([encoder(batch) for batch in images.split(batch_size)])
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test rows whose k nearest training rows vote for their label (Wu et al. 2018, section 3.4).

    A neighbour of cosine similarity c votes with weight exp(c / temperature). Features (N, D) float,
    labels (N,) integers from 0. k: 200 in that paper, 20 best in DINO (Caron et al. 2021); no more than
    a class has rows, or the votes of other classes decide.
    """
    train, classes = unit_rows(train_features), int(train_labels.max()) + 1
    right = 0
    # In chunks: no test x train matrix.
    for rows, labels in zip(unit_rows(test_features).split(1024), test_labels.split(1024), strict=True):
        similarity, nearest = (rows @ train.T).topk(min(k, len(train)))
        votes = similarity.new_zeros(len(rows), classes)
        votes.scatter_add_(1, train_labels[nearest], (similarity / temperature).exp())
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test_labels)


def linear_probe_accuracy(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> float:
    """Share of test rows that a logistic regression on the standardised training features gets right.

    Features (N, D) float, labels (N,) integers.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(train_features.cpu().numpy(), train_labels.cpu().numpy())
    return float(probe.score(test_features.cpu().numpy(), test_labels.cpu().numpy()))
