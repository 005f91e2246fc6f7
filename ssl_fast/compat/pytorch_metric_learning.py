"""The losses of pytorch-metric-learning that compare every row with every other, on our kernels.

    from ssl_fast.compat.pytorch_metric_learning import NTXentLoss  # was: from pytorch_metric_learning.losses import

They are subclasses of the library's classes: its reducers, regularizers, miners and wrappers take them. They compute in
O(N D) memory what theirs computes in O(positive pairs x negative pairs) (NTXentLoss) or O(N M) (SupConLoss), where the
distance is a CosineSimilarity, or a DotProductSimilarity, with p=2 and power=1, and the pairs are all those of the
labels. With another distance or with a miner's pairs the library's own code runs, with one warning. Losses of half
types are float32, theirs of that type.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import distances, losses, reducers
from pytorch_metric_learning.utils import loss_and_miner_utils as pairs_of_labels
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .. import checks, functional
from ..formulas.rows import finite_rows, in_full_precision, unit_rows
from ..formulas.scalars import TEMPERATURES
from ..formulas.sums import softplus
from ..functional._dispatch import as_computed
from ..operators.sampled import CHUNK_ELEMENTS
from .inputs import one_dtype, scalar
from .own_path import say_own_path

__all__ = ["CrossBatchMemory", "NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]

PACKAGE = "pytorch_metric_learning"
DISTRIBUTION = "pytorch-metric-learning"
VERSIONS = ("2.9",)
REPLACES = {"pytorch_metric_learning.losses": ("CrossBatchMemory", "NTXentLoss", "SupConLoss")}

# It passes two views on to the loss that it is given: with ours it is fused as it is.
SelfSupervisedLoss = losses.SelfSupervisedLoss

BLOCK = 256  # anchors whose positives are multiplied at a time


class _AllPairs(NamedTuple):
    """Stands for the indices of all pairs of the labels, which are not made.

    own: (N,) the column that is the anchor itself and no pair of it, or None.
    """

    own: Tensor | None

    def indices(self, labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, ...]:
        """As the library makes them."""
        anchor, positive, *negatives = pairs_of_labels.get_all_pairs_indices(labels, ref_labels)
        if self.own is not None:
            kept = self.own[anchor] != positive
            anchor, positive = anchor[kept], positive[kept]
        return anchor, positive, *negatives


class _Classes:
    """Which columns are positives of which anchor, in O(N + M)."""

    def __init__(self, labels: Tensor, ref_labels: Tensor, own: Tensor | None):
        one = ref_labels is labels
        if labels.is_floating_point() or ref_labels.is_floating_point():
            _, ids = torch.cat([labels, ref_labels]).unique(return_inverse=True)
            labels, ref_labels = ids.split((len(labels), len(ref_labels)))
        self.ids = labels.long().contiguous()
        self.ref_ids = self.ids if one else ref_labels.long().contiguous()
        self.own = own
        ordered, self.columns = self.ref_ids.sort(stable=True)  # the columns of a class together
        self._first = torch.searchsorted(ordered, self.ids)
        self._count = torch.searchsorted(ordered, self.ids, right=True) - self._first
        self.positives = self._count if own is None else self._count - 1  # of each anchor
        sums = torch.stack([self.positives.sum(), self._count.sum()]).tolist()
        self.number: int = sums[0]
        self.number_of_negatives: int = len(self.ids) * len(self.ref_ids) - sums[1]

    def without_loss(self) -> bool:
        """The library's rule: no positives, no negatives, or one of each."""
        return min(self.number, self.number_of_negatives) == 0 or self.number == self.number_of_negatives == 1

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(anchors, positives) of all positive pairs in the library's order, by anchor, then by column."""
        total, device = self.number if self.own is None else self.number + len(self.ids), self.ids.device
        anchors = torch.arange(len(self.ids), device=device).repeat_interleave(self._count, output_size=total)
        place = torch.arange(total, device=device) - (self._count.cumsum(0) - self._count)[anchors]
        columns = self.columns[self._first[anchors] + place]
        if self.own is not None:
            kept = self.own[anchors] != columns
            anchors, columns = anchors[kept], columns[kept]
        return anchors, columns

    def sums(self, v: Tensor) -> Tensor:
        """Of the positives of each anchor (N, D), from the columns (M, D)."""
        of_class = torch.zeros_like(v)  # at the place of the class's first
        place = torch.searchsorted(self.ref_ids[self.columns], self.ref_ids)
        # On a GPU index_add is atomic; index_put sorts.
        add = of_class.index_put((place,), v, accumulate=True) if v.is_cuda else of_class.index_add(0, place, v)
        sums = add[self._first.clamp_max(len(v) - 1)]
        return sums if self.own is None else sums - v[self.own]


def _pair_losses(u: Tensor, v: Tensor, lse: Tensor, scale: Any, anchors: Tensor, positives: Tensor) -> Tensor:
    """softplus(lse - s <u, v>) of each pair, gathering a part of the rows at a time."""

    def piece(anchors: Tensor, positives: Tensor) -> Tensor:
        return softplus(lse[anchors] - scale * (u[anchors] * v[positives]).sum(1))

    step = max(1, CHUNK_ELEMENTS // u.shape[1])
    if len(anchors) <= step:
        return piece(anchors, positives)
    pieces = zip(anchors.split(step), positives.split(step), strict=True)
    return torch.cat([checkpoint(piece, *places, use_reentrant=False, preserve_rng_state=False) for places in pieces])


class _TotalLoss(torch.autograd.Function):
    """The sum of softplus(lse_a - s <u_a, v_p>) over blocks of pairs; the gradients are made beside it, from one tile.

    blocks: for rows of u and a range of v the pairs that do not count.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, lse: Tensor, scale: Any, blocks: Any) -> Tensor:
        total, d_scale = lse.new_zeros(()), lse.new_zeros(())
        d_u, d_v, d_lse = torch.zeros_like(u), torch.zeros_like(v), torch.zeros_like(lse)
        for rows, along, left_out in blocks:
            similarities = u[rows] @ v[along].T
            logits = (lse[rows, None] - scale * similarities).masked_fill_(left_out, float("-inf"))
            total += softplus(logits).sum()
            if any(ctx.needs_input_grad):
                weights = logits.sigmoid_()
                d_lse[rows] = weights.sum(1)
                d_scale -= (weights * similarities).sum()
                weights *= -scale
                d_u[rows] = weights @ v[along]
                d_v[along] += weights.T @ u[rows]
        ctx.save_for_backward(d_u, d_v, d_lse, d_scale.to(scale) if isinstance(scale, Tensor) else d_scale)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:4], strict=True)
        return *((gradient * x).to(x.device) if wanted else None for x, wanted in needed), None


def _mean_pair_loss(u: Tensor, v: Tensor, lse: Tensor, scale: Any, classes: _Classes) -> Tensor:
    """The mean of the pairs' losses, in O(N D) memory: anchors in the order of their classes, in blocks.

    The positives of a block of anchors are a range of the columns in that order, once other classes' are left out.
    """
    columns = classes.columns[torch.isin(classes.ref_ids[classes.columns], classes.ids)]
    ref_ids = classes.ref_ids[columns]
    ids, order = classes.ids.sort(stable=True)
    own = torch.full_like(order, -1) if classes.own is None else classes.own[order]
    step = min(BLOCK, max(1, CHUNK_ELEMENTS // len(columns)))
    firsts = torch.arange(0, len(ids), step, device=ids.device)
    lasts = (firsts + step - 1).clamp_max(len(ids) - 1)
    starts = torch.searchsorted(ref_ids, ids[firsts]).tolist()
    ends = torch.searchsorted(ref_ids, ids[lasts], right=True).tolist()

    def blocks() -> Iterator[tuple[slice, slice, Tensor]]:
        for number, ends_of_range in enumerate(zip(starts, ends, strict=True)):
            rows, along = slice(number * step, (number + 1) * step), slice(*ends_of_range)
            yield rows, along, (ids[rows, None] != ref_ids[along]) | (own[rows, None] == columns[along])

    total: Tensor = _TotalLoss.apply(u[order], v[columns], lse[order], scale, blocks())
    return total / classes.number


class _Fused(losses.GenericPairLoss):
    """What both losses share: whether all pairs of the labels are asked for, of a similarity that has a kernel."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Any:
        if labels is None:
            return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        ref_labels = labels if ref_labels is None else ref_labels
        ours = isinstance(indices_tuple, _AllPairs)  # of CrossBatchMemory
        if _fit(embeddings, ref_emb, ref_labels):
            option = self._unfused()
            pairs = indices_tuple if ours else _all_pairs(indices_tuple, labels, ref_labels)
            if option is None and pairs is not None:
                return self._fused(embeddings, labels, pairs, ref_emb, ref_labels)
            say_own_path(PACKAGE, option or "an indices_tuple or a miner")
        if ours:
            indices_tuple = indices_tuple.indices(labels, ref_labels)
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def _fused(self, embeddings: Tensor, labels: Tensor, pairs: Any, ref_emb: Tensor, ref_labels: Tensor) -> Any:
        if ref_emb is not embeddings and not ref_emb.requires_grad:
            # A memory is written to before the backward pass, at the latest where gradients are accumulated.
            ref_emb, ref_labels = ref_emb.clone(), ref_labels.clone()
        classes = _Classes(labels, ref_labels, pairs.own)
        if classes.without_loss():
            return self.zero_losses()
        distance, one = self.distance, ref_emb is embeddings
        distance.reset_stats()
        distance.set_default_stats(embeddings, ref_emb, *map(distance.maybe_normalize, (embeddings, ref_emb)))
        embeddings, ref_emb = one_dtype(embeddings, ref_emb)
        (embeddings,) = as_computed(embeddings)
        ref_emb = embeddings if one else as_computed(ref_emb)[0]
        rows = unit_rows if distance.normalize_embeddings else finite_rows
        u = rows(embeddings)
        return self._losses(embeddings, ref_emb, u, u if one else rows(ref_emb), classes)

    def _unfused(self) -> str | None:
        """What of the loss's options has no fused form."""
        distance, temperature = self.distance, self.temperature
        for name in ("_compute_loss", "pair_based_loss", "mat_based_loss"):
            computes = next(kind for kind in type(self).__mro__ if name in vars(kind))
            if not computes.__module__.startswith(PACKAGE) or name in vars(self):
                return f"{type(self).__name__}.{name}"
        if getattr(self.loss_method, "__name__", None) not in ("pair_based_loss", "mat_based_loss"):
            return f"{type(self).__name__}.loss_method"
        if type(distance) not in (distances.CosineSimilarity, distances.DotProductSimilarity):
            return f"a {type(distance).__name__} distance"
        if distance.p != 2 or distance.power != 1 or not distance.is_inverted:
            return "a distance with another p or power"
        if any(callable(value) for name, value in vars(distance).items() if name[0] != "_"):
            return "a distance with a method of its own"
        if isinstance(temperature, Tensor) and temperature.numel() != 1:
            return "a temperature of several elements"
        temperature = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
        return None if TEMPERATURES[0] <= abs(temperature) <= TEMPERATURES[1] else "a temperature of this size"

    def _scale(self) -> Any:
        temperature = scalar(self.temperature)
        return temperature.double().reciprocal() if isinstance(temperature, Tensor) else 1 / temperature

    def _lse(self, embeddings: Tensor, ref_emb: Tensor, ids: tuple[Tensor, Tensor] | None) -> Tensor:
        """Of each anchor (N,) over all columns but those of its id."""
        if ref_emb is embeddings and (ids is None or ids[0] is not ids[1]):
            ref_emb = ref_emb.view_as(ref_emb)  # two sides
        normalize: bool = self.distance.normalize_embeddings
        lse: Tensor = functional.similarity_lse(embeddings, ref_emb, self._scale(), exclude=ids, normalize=normalize)
        return lse

    def _losses(self, embeddings: Tensor, ref_emb: Tensor, u: Tensor, v: Tensor, classes: _Classes) -> Any:
        raise NotImplementedError


class NTXentLoss(_Fused, losses.NTXentLoss):
    """NTXentLoss of pytorch-metric-learning 2.9: a loss for each positive pair (anchor a, positive p) of the labels.

    loss_ap = log(1 + sum_n exp((s_an - s_ap) / temperature)) over the negatives n of a; other positives of a are not
    in it. Arguments, defaults and results as theirs, but exact where theirs stops at -log(tiny), 87.3 in float32 and
    9.7 in float16, without a gradient. More positive pairs than rows, where the reducer is a MeanReducer without
    statistics, are reduced block by block; other reducers get every pair's loss and indices, in their order.
    """

    @in_full_precision
    def _losses(self, embeddings: Tensor, ref_emb: Tensor, u: Tensor, v: Tensor, classes: _Classes) -> Any:
        lse, scale = self._lse(embeddings, ref_emb, (classes.ids, classes.ref_ids)), self._scale()
        if classes.number > len(u) + len(v) and _takes_mean(self.reducer):
            mean = _mean_pair_loss(u, v, lse, scale, classes)
            return {"loss": {"losses": mean, "indices": None, "reduction_type": "already_reduced"}}
        pairs = classes.pairs()
        of_pairs = _pair_losses(u, v, lse, scale, *pairs)
        return {"loss": {"losses": of_pairs, "indices": pairs, "reduction_type": "pos_pair"}}


class SupConLoss(_Fused, losses.SupConLoss):
    """SupConLoss of pytorch-metric-learning 2.9: of each anchor a the mean over its positives p of

    log sum_k exp(s_ak / temperature) - s_ap / temperature, k over all columns but the anchor itself; 0 without
    positives. Arguments, defaults and results as theirs, but no anchor with a positive has a loss of 0: where theirs
    rounds to it, its AvgNonZeroReducer leaves the anchor out of the mean.
    """

    @in_full_precision
    def _losses(self, embeddings: Tensor, ref_emb: Tensor, u: Tensor, v: Tensor, classes: _Classes) -> Any:
        columns, own, positives = torch.arange(len(v), device=v.device), classes.own, classes.positives
        # Columns by their numbers: an anchor leaves its own out.
        ids = None if own is None else (columns if ref_emb is embeddings else own, columns)
        lse = self._lse(embeddings, ref_emb, ids)
        similarity = (u * classes.sums(v)).sum(1) / positives.clamp_min(1)
        rows = lse - self._scale() * similarity
        # Above 0 by its definition, whatever rounding says.
        rows = rows.clamp_min(torch.finfo(rows.dtype).tiny)
        rows = torch.where((positives > 0) | lse.isnan(), rows, 0.0)
        indices = torch.arange(len(u), device=u.device)
        return {"loss": {"losses": rows, "indices": indices, "reduction_type": "element"}}


class CrossBatchMemory(losses.CrossBatchMemory):
    """CrossBatchMemory of pytorch-metric-learning 2.9 (Wang et al. 2020), whose place a checkpoint keeps.

    The state dict has, beside theirs, `_extra_state`: queue_idx and has_been_filled. Theirs loads here with
    strict=True, and leaves both as they are; ours loads in theirs with strict=False. With our NTXentLoss or SupConLoss
    and no miner no pairs are made. A batch of one row is no positive of itself, of more rows to enqueue than the
    memory has the last ones stay, and none to enqueue do not make the memory full, where theirs differs.
    """

    queue_idx: int
    has_been_filled: bool

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Writes row j to (queue_idx + j) mod memory_size and advances queue_idx."""
        end = self.queue_idx + batch_size
        self.curr_batch_idx = torch.arange(self.queue_idx, end, device=labels.device) % self.memory_size
        stay = self.curr_batch_idx[-self.memory_size :]
        self.embedding_memory[stay] = embeddings[-self.memory_size :].detach()
        self.label_memory[stay] = labels[-self.memory_size :].detach()
        self.has_been_filled = self.has_been_filled or end >= self.memory_size
        self.queue_idx = end % self.memory_size

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        if self.miner or input_indices_tuple is not None or not isinstance(self.loss, _Fused):
            return super().create_indices_tuple(
                embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
            )
        return _AllPairs(self.curr_batch_idx if do_remove_self_comparisons else None)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.queue_idx, int(self.has_been_filled)])

    def set_extra_state(self, state: Tensor) -> None:
        self.queue_idx, filled = state.tolist()
        self.has_been_filled = bool(filled)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *lists: Any) -> None:
        missing_keys: list[str] = lists[0]
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *lists)
        if f"{prefix}_extra_state" in missing_keys:  # the library's own
            missing_keys.remove(f"{prefix}_extra_state")


def _fit(embeddings: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> bool:
    """Whether these are rows that can be compared; the library's code says what is wrong with others."""
    same = embeddings.dtype == ref_emb.dtype or torch.is_autocast_enabled(embeddings.device.type)
    return (
        same
        and embeddings.dim() == ref_emb.dim() == 2
        and embeddings.shape[1] == ref_emb.shape[1]
        and embeddings.dtype in checks.FLOATS
        and ref_emb.dtype in checks.FLOATS
        and embeddings.device == ref_emb.device
        and len(ref_labels) == len(ref_emb)
        and 0 not in (*embeddings.shape, len(ref_emb))
    )


def _all_pairs(indices: Any, labels: Tensor, ref_labels: Tensor) -> _AllPairs | None:
    """All pairs of the labels, where indices is None or lists them in the library's order; else None.

    They are listed by DistributedLossWrapper(efficient=True), without each anchor and itself.
    """
    itself = torch.arange(len(labels), device=labels.device)
    if indices is None:
        return _AllPairs(itself if ref_labels is labels else None)
    if len(indices) != 4 or any(x.device != labels.device for x in indices):
        return None
    anchors, positives, others, negatives = (x.long() for x in indices)
    for own in (None, itself):
        classes = _Classes(labels, ref_labels, own)
        if classes.number == len(positives) and classes.number_of_negatives == len(negatives) == len(others):
            place = others * len(ref_labels) + negatives
            listed = all(torch.equal(x, y) for x, y in zip((anchors, positives), classes.pairs(), strict=True))
            # As many as there are, of other labels, none twice.
            distinct = bool((place.diff() > 0).all() and (labels[others] != ref_labels[negatives]).all())
            return _AllPairs(own) if listed and distinct else None
    return None


def _takes_mean(reducer: Any) -> bool:
    """Whether the reducer is a plain mean of the losses, by itself or for the loss beside a regularizer's."""
    if type(reducer) is reducers.MultipleReducers:
        reducer = dict(reducer.reducers).get("loss", reducer.default_reducer)
    return type(reducer) is reducers.MeanReducer and not reducer.collect_stats
