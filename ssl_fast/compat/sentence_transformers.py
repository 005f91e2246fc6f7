"""sentence-transformers' ranking losses with in-batch negatives, subclasses of its own, without similarity matrices.

    from ssl_fast.compat.sentence_transformers import MultipleNegativesRankingLoss
    # was: from sentence_transformers.losses import MultipleNegativesRankingLoss

Arguments, attributes, config dict, citation and errors are those of the library; what computes the loss from the
embeddings is ours where similarity_fct is cos_sim or dot_score. Every direction, partition mode and hardness mode has
a fused form, of O(N D) memory.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer import losses as theirs
from torch import Tensor
from typing_extensions import deprecated

from ..formulas.rows import unit_rows, upcast
from ..formulas.sums import reduce, softplus
from ..functional import clip, similarity_lse
from ..functional.queries import info_nce_of_scale
from .inputs import scalar
from .own_path import say_own_path

PACKAGE = "sentence_transformers"
DISTRIBUTION = "sentence-transformers"
VERSIONS = ("6.2",)
REPLACES = {
    "sentence_transformers.sentence_transformer.losses": (
        "MultipleNegativesRankingLoss",
        "MultipleNegativesSymmetricRankingLoss",
        "CachedMultipleNegativesRankingLoss",
        "CachedMultipleNegativesSymmetricRankingLoss",
    )
}

_FURTHER = "query_to_query", "doc_to_query", "doc_to_doc"


class MultipleNegativesRankingLoss(theirs.MultipleNegativesRankingLoss):
    """In-batch InfoNCE of queries and documents, with hard negatives, further directions (GTE) and hardness weights.

    As the library's of 6.2 in all but where it computes: similarities accumulate in float32 also under autocast.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """embeddings: (N, D) each: queries, their documents, then hard negatives. labels: not used. A 0-D loss."""
        if not _is_fused(self, embeddings):
            return super().compute_loss_from_embeddings(embeddings, labels)
        return _fused(self, embeddings)


class CachedMultipleNegativesRankingLoss(theirs.CachedMultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` with the library's gradient caching of the embeddings.

    mini_batch_size is of the embedding stages; the loss stage is one call over the batch, which needs no chunks and
    has no progress bar.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """reps: for each column its mini-batches (n, D). with_backward: gradients are left in them."""
        embeddings = [torch.cat(column) for column in reps]
        if not _is_fused(self, embeddings):
            return super().calculate_loss(reps, labels, with_backward=with_backward)
        loss = _fused(self, embeddings)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


# The library warns of these two at every subclass; here, as there, at every object.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)

    @deprecated(theirs.MultipleNegativesSymmetricRankingLoss.__deprecated__)
    class MultipleNegativesSymmetricRankingLoss(
        MultipleNegativesRankingLoss, theirs.MultipleNegativesSymmetricRankingLoss
    ):
        """The mean of both directions, queries to documents and documents to queries. Deprecated there too."""

    @deprecated(theirs.CachedMultipleNegativesSymmetricRankingLoss.__deprecated__)
    class CachedMultipleNegativesSymmetricRankingLoss(
        CachedMultipleNegativesRankingLoss, theirs.CachedMultipleNegativesSymmetricRankingLoss
    ):
        """`MultipleNegativesSymmetricRankingLoss` with gradient caching. Deprecated there too."""


def _is_fused(loss: Any, embeddings: list[Tensor]) -> bool:
    if len(embeddings) < 2:
        return False  # the library's error
    if loss.similarity_fct not in (util.cos_sim, util.dot_score):
        say_own_path("sentence_transformers", "a similarity_fct other than cos_sim and dot_score")
        return False
    directions = set(loss.directions)
    per_direction = loss.partition_mode == "per_direction"
    if "query_to_doc" not in directions or (per_direction and directions & {"query_to_query", "doc_to_doc"}):
        say_own_path("sentence_transformers", "a choice of directions that its constructor refuses")
        return False
    if _is_hard(loss) and any(isinstance(x, Tensor) for x in (loss.scale, loss.hardness_strength)):
        say_own_path("sentence_transformers", "a tensor for scale or hardness_strength, with hardness weights,")
        return False
    return True


def _is_hard(loss: Any) -> bool:
    return loss.hardness_mode is not None and bool(loss.hardness_strength > 0)


def _fused(loss: Any, embeddings: list[Tensor]) -> Tensor:
    queries, *docs = embeddings
    normalize, directions = loss.similarity_fct is util.cos_sim, set(loss.directions)
    hard, scale = _is_hard(loss), scalar(loss.scale)
    if len(docs) == 1 and not hard and not loss.gather_across_devices:
        if directions == {"query_to_doc"} and normalize:
            return info_nce_of_scale(queries, docs[0], None, scale)
        if directions == {"query_to_doc", "doc_to_query"} and loss.partition_mode == "per_direction":
            return clip(queries, docs[0], logit_scale=scale, normalize=normalize)
    batch = _Batch(queries, docs, scale, normalize, loss.gather_across_devices)
    # Relative to the positive's logit, so that what is small of a loss is not rounded as a logit is.
    logits = {"query_to_doc": batch.hardened(loss.hardness_mode, loss.hardness_strength) if hard else batch.to_docs()}
    logits |= {name: [batch.others(name)] for name in _FURTHER if name in directions}
    positive = batch.positive
    relative = {name: [x - positive for x in of_direction] for name, of_direction in logits.items()}
    if loss.partition_mode == "joint":
        # The positive pair is in both directions between queries and documents.
        pairs = len(directions & {"query_to_doc", "doc_to_query"})
        losses = _with_pairs([x for of_direction in relative.values() for x in of_direction], pairs)
    else:
        losses = torch.stack([_with_pairs(x, 1) for x in relative.values()]).mean(0)
    return reduce(losses, "mean")


def _with_pairs(logits: list[Tensor], pairs: int) -> Tensor:
    """log(pairs + the sum of exp(logits)), of each row."""
    # Without any negative -Inf, whose log-sum-exp would have a gradient of NaN.
    log_sum = torch.stack(logits).clamp_min(-1e30).logsumexp(0)
    return math.log(pairs) + softplus(log_sum - math.log(pairs))


class _Batch:
    """The rank's own queries and documents, and all that they meet. Log-sum-exps here are without the positive pair."""

    def __init__(self, queries: Tensor, docs: list[Tensor], scale: float, normalize: bool, gathers: bool):
        self.scale, self.normalize = scale, normalize
        if gathers:
            own = slice(util.get_rank() * queries.shape[0], (util.get_rank() + 1) * queries.shape[0])
            queries, docs = util.all_gather_with_grad(queries), [util.all_gather_with_grad(x) for x in docs]
        image = torch.arange(queries.shape[0], device=queries.device)
        self.queries, self.docs = queries, docs[0] if len(docs) == 1 else torch.cat(docs)
        self.own_queries, self.own_docs, self.own_image = queries, docs, image
        # Rows with themselves take half the products, where they are one tensor.
        if gathers:
            self.own_queries, self.own_docs, self.own_image = queries[own], [x[own] for x in docs], image[own]
        self.image, self.image_of_docs = image, image if len(docs) == 1 else image.repeat(len(docs))
        self.positive = self.scale * self._similarities(self.own_docs[0])

    def to_docs(self) -> list[Tensor]:
        """Own queries with all documents."""
        others = torch.full_like(self.image_of_docs[self.image.shape[0] :], -1)
        ids = self.image if not others.numel() else torch.cat([self.image, others])
        return [self._lse(self.own_queries, self.docs, ids)]

    def others(self, direction: str) -> Tensor:
        """The directions in which all rows of the own image are left out."""
        a = self.own_queries if direction == "query_to_query" else self.own_docs[0]
        b, ids = (self.docs, self.image_of_docs) if direction == "doc_to_doc" else (self.queries, self.image)
        return self._lse(a, b, ids)

    def hardened(self, mode: str, strength: float) -> list[Tensor]:
        """`to_docs` with strength times the similarity, as a constant, added to the logits of the mode's negatives."""
        found, of_hard = [], 0.0 if mode == "in_batch_negatives" else strength
        for docs in self.own_docs[1:]:
            similarities = self._similarities(docs)
            found.append(self.scale * similarities + of_hard * similarities.detach())
        if mode == "hard_negatives":
            return [*found, self._lse(self.own_queries, self.docs, self.image_of_docs)]
        # The value is that at the scale of both; the constant's share of the gradient is left out.
        value = self._lse(self.own_queries, self.docs, self.image_of_docs, strength)
        share = self.scale / (self.scale + strength)
        return [*found, share * value + ((1 - share) * value).detach()]

    def _lse(self, a: Tensor, b: Tensor, ids: Tensor, extra_scale: float = 0.0) -> Tensor:
        return similarity_lse(a, b, self.scale + extra_scale, exclude=(self.own_image, ids), normalize=self.normalize)

    def _similarities(self, docs: Tensor) -> Tensor:
        """(N,) of own queries with one document each."""
        prepared = unit_rows if self.normalize else upcast
        return (prepared(self.own_queries) * prepared(docs)).sum(1)
