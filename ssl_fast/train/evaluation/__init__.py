"""Evaluation of trained encoders: measures of fixed features, the papers' linear probe, tables and plots."""

from .features import encode, encode_batches
from .linear_probe import probe_features, probe_images
from .metrics import alignment, knn_accuracy, label_fraction, logistic_regression_accuracy, uniformity

__all__ = [
    "encode",
    "encode_batches",
    "knn_accuracy",
    "logistic_regression_accuracy",
    "label_fraction",
    "alignment",
    "uniformity",
    "probe_features",
    "probe_images",
]
