"""The same work by others: plain PyTorch, torch.compile, and the libraries that are installed."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

import ssl_fast


def eager_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """The textbook SimCLR loss: the whole matrix, its diagonal masked, cross-entropy."""
    u = F.normalize(torch.cat([z1, z2]))
    logits = (u @ u.T / temperature).fill_diagonal_(float("-inf"))
    rows = len(u)
    return F.cross_entropy(logits, torch.arange(rows, device=u.device).roll(rows // 2))


def eager_info_nce(query: Tensor, positive: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """The textbook MoCo loss: [positive, queue] logits, label 0."""
    q, k = F.normalize(query), F.normalize(positive)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


HAS_LINEAR_CROSS_ENTROPY = hasattr(F, "linear_cross_entropy")  # torch 2.13 or newer


def linear_cross_entropy(rows: Tensor, columns: Tensor, target: Tensor) -> Tensor:
    """torch's own, in pieces of the batch where its page says that they pay; elsewhere it stores all logits."""
    pays = len(rows) >= rows.shape[1] < len(columns)
    return F.linear_cross_entropy(rows, columns, target, options=torch.nn.LinearCrossEntropyOptions() if pays else None)


def one_direction(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """In-batch InfoNCE by linear_cross_entropy."""
    return linear_cross_entropy(F.normalize(query) / temperature, F.normalize(key), torch.arange(len(query)))


ABSENT: dict[str, str] = {}  # of the libraries that were asked for: which cannot be used, and why


@functools.cache
def installed(module: str) -> ModuleType | None:
    """The module, or None where it cannot be imported, which is said once: its figures will be missing."""
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name is None or error.name.partition(".")[0] == library
        ABSENT[library] = f"{library} is not installed" if missing else f"{library} needs {error.name}"
    except Exception as error:  # a library that does not fit this torch may raise anything
        ABSENT[library] = f"{library} cannot be imported: {type(error).__name__}: {error}"
    print(f"{ABSENT[library]}: left out", file=sys.stderr)
    return None


def _add(peers: dict[str, Callable], name: str, module: str, make: Callable[[ModuleType], Callable]) -> None:
    """Adds make(the imported module), unless the library is not there or cannot make it."""
    if library := installed(module):
        try:
            peers[name] = make(library)
        except Exception as error:
            print(f"{name}: left out, {type(error).__name__}: {error}", file=sys.stderr)


def compile_once(function: Callable) -> Callable:
    """Compiled for one case: with many, torch.compile would pass its limit and silently run eager code."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def nt_xent_peers(
    rows: int, temperature: float, compiled: bool = True
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses of two views by name of the library; each equals NT-Xent over 2N rows. compiled: by torch.compile too."""
    peers = {"eager": lambda z1, z2: eager_nt_xent(z1, z2, temperature)}
    if compiled:
        by_compile = compile_once(eager_nt_xent)
        peers["compile"] = lambda z1, z2: by_compile(z1, z2, temperature)
    _add(peers, "lightly", "lightly.loss", lambda lightly: lightly.NTXentLoss(temperature=temperature))
    if rows <= 256:  # its memory grows with the cube of the rows: 34 GB a temporary at 1024
        _add(
            peers,
            "pytorch-metric-learning",
            "pytorch_metric_learning.losses",
            lambda pml: pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=temperature)),
        )
    return peers


def info_nce_peers(
    queue: Tensor, temperature: float, compiled: bool = True
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses of queries and positives against a queue (K, D) of unit rows. compiled: by torch.compile too."""
    peers = {"eager": lambda query, positive: eager_info_nce(query, positive, queue, temperature)}
    if compiled:
        by_compile = compile_once(eager_info_nce)
        peers["compile"] = lambda query, positive: by_compile(query, positive, queue, temperature)

    def against_bank(lightly: ModuleType) -> Callable[[Tensor, Tensor], Tensor]:
        loss = lightly.NTXentLoss(temperature=temperature, memory_bank_size=tuple(queue.shape))
        loss.memory_bank.bank = queue.clone()

        def call(query: Tensor, positive: Tensor) -> Tensor:
            # Its loss also enqueues, one batch's rows: put the pointer back, time the whole.
            loss.memory_bank.bank_ptr.zero_()
            return loss(query, positive)

        return call

    _add(
        peers,
        "info-nce-pytorch",
        "info_nce",
        lambda library: lambda query, positive: library.info_nce(query, positive, queue, temperature),
    )
    _add(peers, "lightly", "lightly.loss", against_bank)
    return peers


def in_batch_peers(temperature: float) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Losses of queries against the positives of all, one direction."""

    def eager(query: Tensor, positive: Tensor) -> Tensor:
        logits = F.normalize(query) @ F.normalize(positive).T / temperature
        return F.cross_entropy(logits, torch.arange(len(query)))

    def ranking(losses: ModuleType) -> Callable[[Tensor, Tensor], Tensor]:
        loss = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / temperature)
        return lambda query, positive: loss.compute_loss_from_embeddings([query, positive], None)

    peers = {"eager": eager}
    if HAS_LINEAR_CROSS_ENTROPY:
        peers["linear_cross_entropy"] = lambda query, positive: one_direction(query, positive, temperature)
    _add(
        peers,
        "info-nce-pytorch",
        "info_nce",
        lambda library: lambda query, positive: library.info_nce(query, positive, temperature=temperature),
    )
    _add(peers, "sentence-transformers", "sentence_transformers.sentence_transformer.losses", ranking)
    return peers


def given_negatives_peers(temperature: float, mode: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Losses of queries, positives and negatives: "unpaired" (M, D), of all queries, "paired" (N, M, D), of each."""

    def eager(query: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        q, k, n = F.normalize(query), F.normalize(positive), F.normalize(negatives, dim=-1)
        similarities = q @ n.T if mode == "unpaired" else torch.einsum("nd,nmd->nm", q, n)
        logits = torch.cat([(q * k).sum(1, keepdim=True), similarities], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    peers = {"eager": eager}
    _add(
        peers,
        "info-nce-pytorch",
        "info_nce",
        lambda library: lambda *given: library.info_nce(*given, temperature=temperature, negative_mode=mode),
    )
    return peers


def ema_peers(target: list[Tensor], source: list[Tensor], momentum: float) -> dict[str, Callable[[], None]]:
    """Momentum updates of the same tensors; `flat` is the floor, one lerp_ over as many bytes."""
    flat_target, flat_source = (torch.cat([x.flatten() for x in tensors]) for tensors in (target, source))

    def two_passes() -> None:  # what lightly's update_momentum does
        torch._foreach_mul_(target, momentum)
        torch._foreach_add_(target, source, alpha=1 - momentum)

    return {
        "flat": lambda: flat_target.lerp_(flat_source, 1 - momentum),
        "foreach_lerp": lambda: torch._foreach_lerp_(target, source, 1 - momentum),
        "lightly": two_passes,
        "ssl_fast": lambda: ssl_fast.ema_update_(target, source, momentum),
    }
