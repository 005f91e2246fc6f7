"""The losses once more, in float64 NumPy and plain loops: the truth for `ssl_fast.reference`.

Written from the papers' formulas and independent of the package, which is not imported here. Arguments have the
package's names and defaults; where rows are taken as they are, `as_they_are` says so.
"""

import decimal
import math
from decimal import Decimal
from typing import NamedTuple

import numpy as np

EPS = 1e-12


class Rows(NamedTuple):
    """The losses, and for each anchor its positive's cosine similarity and those of its negatives.

    positives: those of all its positives, where there may be several or none; `positive` is then the best of them.
    """

    loss: np.ndarray
    positive: list[float]
    negatives: list[list[float]]
    positives: list[list[float]] | None = None


def unit(row) -> np.ndarray:
    """x / max(|x|, EPS); a row that holds NaN or Inf is NaN."""
    row = plain(row)
    # hypot neither overflows nor underflows.
    return row / max(math.hypot(*row), EPS)


def plain(row) -> np.ndarray:
    """The row as it is; one that holds NaN or Inf is NaN."""
    row = np.asarray(row, dtype=np.float64)
    return row if np.isfinite(row).all() else np.full_like(row, np.nan)


def units(rows, as_they_are: bool = False) -> list[np.ndarray]:
    return [plain(row) if as_they_are else unit(row) for row in rows]


def dots(u, v) -> list[list[float]]:
    return [[float(np.dot(x, y)) for y in v] for x in u]


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


def log_sum_exp(logits: list[float]) -> float:
    """log sum_j exp(logits_j); -Inf of none."""
    if any(math.isnan(x) for x in logits):
        return math.nan
    if not logits:
        return -math.inf
    largest = max(logits)
    return largest + math.log(math.fsum(math.exp(x - largest) for x in logits))


def minus_log_sigmoid(x: float) -> float:
    """log(1 + exp(-x))."""
    return cross_entropy(x, [0.0])


def _rows(positive: list[float], negatives: list[list[float]], temperature: float) -> Rows:
    loss = [
        cross_entropy(p / temperature, [n / temperature for n in row])
        for p, row in zip(positive, negatives, strict=True)
    ]
    return Rows(np.array(loss), positive, negatives)


def _rows_of_several(positives, negatives, temperature: float, form: str) -> Rows:
    """Khosla et al. 2020, eq. 2 ("out") and 3 ("in"), for each anchor over its positives and its negatives."""
    loss, best, sign = [], [], math.copysign(1.0, temperature)
    for own, others in zip(positives, negatives, strict=True):
        whole = log_sum_exp([x / temperature for x in own + others])
        # log of exp(s <u_i, u_p>) / sum_a exp(s <u_i, u_a>)
        logs = [x / temperature - whole for x in own]
        if not own:
            loss.append(math.nan if math.isnan(whole) else 0.0)
        elif form == "out":
            loss.append(-math.fsum(logs) / len(own))
        else:
            loss.append(math.log(len(own)) - log_sum_exp(logs))
        best.append(sign * max((sign * x for x in own), default=-math.inf))
    return Rows(np.array(loss), best, negatives, positives)


def similarity_lse(a, b, scale: float, exclude=None, only=None, normalize: bool = True, symmetric: bool = False):
    """(lse of each row, lse of each column). symmetric: b is a, so that with `only` a row is not its own pair."""
    similarity = dots(units(a, not normalize), units(b, not normalize))

    def counts(i: int, k: int) -> bool:
        if only is not None:
            return only[0][i] == only[1][k] and not (symmetric and i == k)
        if exclude is None:
            return True
        return i != k if isinstance(exclude, str) else exclude[0][i] != exclude[1][k]

    pairs = {(i, k): scale * x for i, row in enumerate(similarity) for k, x in enumerate(row) if counts(i, k)}
    rows = [log_sum_exp([pairs[i, k] for k in range(len(b)) if (i, k) in pairs]) for i in range(len(a))]
    columns = [log_sum_exp([pairs[i, k] for i in range(len(a)) if (i, k) in pairs]) for k in range(len(b))]
    return np.array(rows), np.array(columns)


# Losses of rows with each other


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


def dcl(z1, z2, temperature: float, sigma: float | None = None) -> Rows:
    """Yeh et al. 2022, eq. 6: the positive is not in the sum. sigma: eq. 7, one weight for both views of an image."""
    _, positive, negatives, _ = nt_xent(z1, z2, temperature)
    weights = [1.0] * len(positive)
    if sigma is not None:
        logits = [p / sigma for p in positive[: len(z1)]]
        whole = log_sum_exp(logits)
        weights = [2 - len(z1) * math.exp(x - whole) for x in logits] * 2
    loss = [
        log_sum_exp([n / temperature for n in row]) - weight * p / temperature
        for p, row, weight in zip(positive, negatives, weights, strict=True)
    ]
    return Rows(np.array(loss), positive, negatives)


def hard_negative_nt_xent(z1, z2, temperature: float, beta: float = 1.0, tau_plus: float = 0.0) -> Rows:
    """Robinson et al. 2021, step by step as in their code; in decimals, which do not overflow or run out of digits."""
    _, positive, negatives, _ = nt_xent(z1, z2, temperature)
    loss = []
    with decimal.localcontext(prec=50):
        s, beta, tau_plus = 1 / Decimal(temperature), Decimal(beta), Decimal(tau_plus)
        for p, row in zip(positive, negatives, strict=True):
            if any(math.isnan(x) for x in (p, *row)):
                loss.append(math.nan)
                continue
            count, logits = len(row), [s * Decimal(n) for n in row]
            pos = (s * Decimal(p)).exp()
            importance = [(beta * x).exp() for x in logits]
            weighted = sum(w * x.exp() for w, x in zip(importance, logits, strict=True))
            reweighted = weighted / (sum(importance) / count)
            ng = (-tau_plus * count * pos + reweighted) / (1 - tau_plus)
            # The least that an exponential can be, for either sign of the temperature.
            ng = max(ng, count * (-abs(s)).exp())
            loss.append(float(-(pos / (pos + ng)).ln()))
    return Rows(np.array(loss), positive, negatives)


def supcon(features, labels, temperature: float, form: str = "out") -> Rows:
    """Khosla et al. 2020, eq. 2 and 3. (B, V, D): all views of an image are of its label, or of a class of its own."""
    if np.ndim(features) == 3:
        labels = range(len(features)) if labels is None else labels
        labels = [label for label, views in zip(labels, features, strict=True) for _ in views]
        features = [view for views in features for view in views]
    u = units(features)
    positives, negatives = [], []
    for i in range(len(u)):
        others = {k: float(np.dot(u[i], u[k])) for k in range(len(u)) if k != i}
        positives.append([x for k, x in others.items() if labels[k] == labels[i]])
        negatives.append([x for k, x in others.items() if labels[k] != labels[i]])
    return _rows_of_several(positives, negatives, temperature, form)


# Losses of queries against keys


def info_nce(query, positive, negatives, temperature: float, as_they_are: bool = False, exclude=None) -> Rows:
    """van den Oord et al. 2018, eq. 4. negatives: None (the other positives), (M, D) or (N, M, D).

    as_they_are: the negatives are a queue's rows, which are not normalised. exclude: (ids of the queries, ids of the
    negatives); equal ids are no negatives.
    """
    q, k = units(query), units(positive)
    positives, all_negatives = [], []
    shared = units(negatives, as_they_are) if negatives is not None and np.ndim(negatives) == 2 else None
    for i in range(len(q)):
        if negatives is None:
            own = {j: k[j] for j in range(len(k)) if j != i}
        else:
            own = dict(enumerate(units(negatives[i], as_they_are) if shared is None else shared))
        if exclude is not None:
            own = {j: row for j, row in own.items() if exclude[1][j] != exclude[0][i]}
        positives.append(float(np.dot(q[i], k[i])))
        all_negatives.append([float(np.dot(q[i], n)) for n in own.values()])
    return _rows(positives, all_negatives, temperature)


def multi_positive_info_nce(
    query, positives, negatives, temperature: float, form: str = "out", as_they_are: bool = False
) -> Rows:
    """Khosla et al. 2020, eq. 2 and 3, of a query over its positives (N, P, D) and its negatives, as of `info_nce`."""
    q, k = units(query), [units(own) for own in positives]
    shared = None if negatives is None else units(negatives, as_they_are)
    of_positives, of_negatives = [], []
    for i in range(len(q)):
        others = [row for j in range(len(k)) if j != i for row in k[j]] if shared is None else shared
        of_positives.append([float(np.dot(q[i], row)) for row in k[i]])
        of_negatives.append([float(np.dot(q[i], row)) for row in others])
    return _rows_of_several(of_positives, of_negatives, temperature, form)


def moco_v3(query1, query2, key1, key2, temperature: float) -> Rows:
    """Chen et al. 2021, algorithm 1: one loss an image, whose two anchors are the rows of both directions."""
    first, second = info_nce(query1, key2, None, temperature), info_nce(query2, key1, None, temperature)
    loss = 2 * temperature * (first.loss + second.loss)
    return Rows(loss, first.positive + second.positive, first.negatives + second.negatives)


def clip(a, b, temperature: float, normalize: bool = True) -> Rows:
    """Radford et al. 2021, fig. 3: the rows of the N x N matrix, then its columns."""
    similarity = dots(units(a, not normalize), units(b, not normalize))
    everyone = range(len(similarity))
    of_a = [[similarity[i][k] for k in everyone if k != i] for i in everyone]
    of_b = [[similarity[k][i] for k in everyone if k != i] for i in everyone]
    return _rows([similarity[i][i] for i in everyone] * 2, of_a + of_b, temperature)


def siglip(a, b, temperature: float, bias: float = -10.0, normalize: bool = True) -> Rows:
    """Zhai et al. 2023, eq. 1: one loss a row of a; the anchors are the rows of both."""
    _, positive, negatives, _ = clip(a, b, temperature, normalize)
    loss = [
        minus_log_sigmoid(p / temperature + bias) + math.fsum(minus_log_sigmoid(-(n / temperature + bias)) for n in row)
        for p, row in zip(positive[: len(a)], negatives[: len(a)], strict=True)
    ]
    return Rows(np.array(loss), positive, negatives)


# Losses of images against a bank


def instance_discrimination(features, index, bank, temperature: float) -> Rows:
    """Wu et al. 2018, eq. 2: -log P(index_i | u_i) over all rows of the bank."""
    similarity = dots(units(features), units(bank, as_they_are=True))
    positive = [row[i] for row, i in zip(similarity, index, strict=True)]
    negatives = [[x for j, x in enumerate(row) if j != i] for row, i in zip(similarity, index, strict=True)]
    return _rows(positive, negatives, temperature)


def instance_nce(features, index, noise, bank, normalizer: float, temperature: float) -> Rows:
    """Wu et al. 2018, eq. 4 to 8: -log h(index_i) - sum_j log(1 - h(noise_ij)), h = P / (P + m / n)."""
    rows, loss, positive, negatives = units(bank, as_they_are=True), [], [], []
    for u, own, others in zip(units(features), index, noise, strict=True):
        positive.append(float(np.dot(u, rows[own])))
        negatives.append([float(np.dot(u, rows[j])) for j in others])
        log_noise = math.log(len(others) / len(rows))
        # h is the sigmoid of log P - log(m / n).
        odds = [x / temperature - math.log(normalizer) - log_noise for x in (positive[-1], *negatives[-1])]
        loss.append(minus_log_sigmoid(odds[0]) + math.fsum(minus_log_sigmoid(-x) for x in odds[1:]))
    return Rows(np.array(loss), positive, negatives)


# What is made of the rows


def reduce(loss: np.ndarray, reduction: str, counted: int | None = None):
    """counted: how many rows the mean is over, where it is not all."""
    total = math.fsum(loss)
    return {"none": loss, "sum": total, "mean": total / (len(loss) if counted is None else counted)}[reduction]


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
    """Of anchors with their positives and with their negatives; NaN where there are none."""
    pairs = rows.positive if rows.positives is None else [x for own in rows.positives for x in own]
    return _mean(pairs), _mean([x for own in rows.negatives for x in own])


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


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
