"""The losses once more, in float64 NumPy and plain loops: the truth for `ssl_fast.reference`.

Written from the papers' formulas and independent of the package, which is not imported here.
"""

import math
from typing import NamedTuple

import numpy as np

EPS = 1e-12


class Rows(NamedTuple):
    """One entry per anchor: its loss, its positive's cosine similarity and those of its negatives."""

    loss: np.ndarray
    positive: list[float]
    negatives: list[list[float]]


def unit(row) -> np.ndarray:
    """x / max(|x|, EPS); a row that holds NaN or Inf is NaN."""
    row = np.asarray(row, dtype=np.float64)
    if not np.isfinite(row).all():
        return np.full_like(row, np.nan)
    # hypot neither overflows nor underflows.
    return row / max(math.hypot(*row), EPS)


def units(rows) -> list[np.ndarray]:
    return [unit(row) for row in rows]


def cross_entropy(positive: float, negatives: list[float]) -> float:
    """log(exp(positive) + sum_j exp(negatives_j)) - positive."""
    logits = [positive, *negatives]
    if any(math.isnan(x) for x in logits):
        return math.nan
    # The differences to the positive keep a loss near 0 exact, as log1p of what the negatives add.
    gaps = [x - positive for x in negatives]
    largest = max(gaps, default=0.0)
    if largest <= 0:
        return math.log1p(math.fsum(math.exp(gap) for gap in gaps))
    return largest + math.log(math.exp(-largest) + math.fsum(math.exp(gap - largest) for gap in gaps))


def _rows(positive: list[float], negatives: list[list[float]], temperature: float) -> Rows:
    loss = [
        cross_entropy(p / temperature, [n / temperature for n in row])
        for p, row in zip(positive, negatives, strict=True)
    ]
    return Rows(np.array(loss), positive, negatives)


def nt_xent(z1, z2, temperature: float) -> Rows:
    """Chen et al. 2020, eq. 1: 2N anchors, the rows of z1 first; an anchor is not its own negative."""
    u = units(z1) + units(z2)
    rows, half = len(u), len(u) // 2
    positive, negatives = [], []
    for i in range(rows):
        partner = (i + half) % rows
        positive.append(float(np.dot(u[i], u[partner])))
        negatives.append([float(np.dot(u[i], u[k])) for k in range(rows) if k not in (i, partner)])
    return _rows(positive, negatives, temperature)


def info_nce(query, positive, negatives, temperature: float, as_they_are: bool = False) -> Rows:
    """van den Oord et al. 2018, eq. 4. negatives: None (the other positives), (M, D) or (N, M, D).

    as_they_are: the negatives are a queue's rows, which are not normalised.
    """
    q, k = units(query), units(positive)
    positives, all_negatives = [], []
    prepare = (lambda rows: [np.asarray(row, dtype=np.float64) for row in rows]) if as_they_are else units
    shared = prepare(negatives) if negatives is not None and np.ndim(negatives) == 2 else None
    for i in range(len(q)):
        if negatives is None:
            own = [k[j] for j in range(len(k)) if j != i]
        else:
            own = prepare(negatives[i]) if shared is None else shared
        positives.append(float(np.dot(q[i], k[i])))
        all_negatives.append([float(np.dot(q[i], n)) for n in own])
    return _rows(positives, all_negatives, temperature)


def reduce(loss: np.ndarray, reduction: str):
    total = math.fsum(loss)
    return {"none": loss, "sum": total, "mean": total / len(loss)}[reduction]


def top_share(rows: Rows, temperature: float, top: int, tie: float = 0.0) -> tuple[float, float]:
    """Share of anchors with fewer than `top` negatives above the positive: least and most.

    Similarities closer than `tie` may fall either way. With 0, equal means not above, and both are equal.
    """
    sign = math.copysign(1.0, temperature)
    least = most = 0
    for p, negatives in zip(rows.positive, rows.negatives, strict=True):
        gaps = [sign * (n - p) for n in negatives]
        least += sum(gap > -tie if tie else gap > 0 for gap in gaps) < top
        most += sum(gap > tie for gap in gaps) < top
    return least / len(rows.positive), most / len(rows.positive)


def mean_similarities(rows: Rows) -> tuple[float, float]:
    """Of anchors with their positive and with their negatives; NaN where there are none."""
    negatives = [n for row in rows.negatives for n in row]
    positive = math.fsum(rows.positive) / len(rows.positive)
    return positive, math.fsum(negatives) / len(negatives) if negatives else math.nan


def enqueue(queue, pointer: int, keys) -> tuple[np.ndarray, int]:
    """Key by key to row `pointer`, round and round (He et al. 2020, algorithm 1)."""
    queue = np.array(queue, copy=True)
    for key in keys:
        queue[pointer] = key
        pointer = (pointer + 1) % len(queue)
    return queue, pointer


def ema(target, source, momentum: float) -> np.ndarray:
    """momentum * target + (1 - momentum) * source (He et al. 2020, eq. 2)."""
    target, source = np.asarray(target, dtype=np.float64), np.asarray(source, dtype=np.float64)
    out = np.empty_like(target)
    for i in np.ndindex(target.shape):
        out[i] = momentum * target[i] + (1 - momentum) * source[i]
    return out
