"""The losses as modules: each holds its options and calls the function of the same name."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import checks, functional
from .formulas.rows import unit_rows
from .functional.instances import checked_rows
from .memory.bank import MemoryBank
from .memory.queue import NegativeQueue
from .operators.sampled import sampled_similarity
from .parallel.group import check_group

if TYPE_CHECKING:
    from .annotations import Group


class LearnableTemperature(nn.Module):
    """A temperature that is learnt as CLIP learns it (Radford et al. 2021): exp(-log_scale), for every loss here.

    init: the first temperature. max_scale: the largest 1 / temperature; the parameter is clamped to it whenever it is
    used. Parameter `log_scale` (0-D, float32): exclude it from weight decay, and move it to the embeddings' device:
    left on the CPU, its gradient makes each backward pass wait for the GPU. Raises ValueError for values that do not
    fit.

    >>> loss = NTXentLoss(temperature=LearnableTemperature(0.07))  # give loss.parameters() to the optimizer
    """

    def __init__(self, init: float = 0.07, max_scale: float = 100.0):
        super().__init__()
        checks.number("init", init, 1e-8, 1e8)
        checks.number("max_scale", max_scale, 1e-8, 1e8)
        if 1 / init > max_scale * (1 + 1e-9):
            raise ValueError(f"init: expected at least 1 / max_scale = {1 / max_scale}, got {init}")
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(-math.log(init)))

    def forward(self) -> Tensor:
        """The temperature, 0-D."""
        # The parameter itself: with a clamped value it would get no gradient by which to come back.
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.max_scale))
        return torch.exp(-self.log_scale)

    def extra_repr(self) -> str:
        return f"max_scale={self.max_scale}"


class _Loss(nn.Module):
    """Options shared by the losses, checked once here.

    temperature: a number of size 1e-8 to 1e8, a 0-D tensor or Parameter, which gets its gradient, or a
    `LearnableTemperature`. reduction: "mean", "sum" or "none". group: None, or the processes that the batch is spread
    over (`ssl_fast.parallel`). Raises ValueError or TypeError for others.
    """

    def __init__(self, temperature: float | Tensor | nn.Module = 0.1, reduction: str = "mean", group: Group = None):
        super().__init__()
        checks.temperature(temperature)
        checks.reduction(reduction)
        if group is not None:
            check_group(group)
        self.temperature: Any = temperature  # a module is called by the function
        self.reduction = reduction
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # The group stays the same: it stands for the processes, and cannot be copied.
        memo[id(self.group)] = self.group
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        options = {name: value for name, value in self.__dict__.items() if name[0] != "_" and name != "training"}
        if options["group"] is None:
            del options["group"]
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


class NTXentLoss(_Loss):
    """`functional.nt_xent` as a module: NT-Xent (Chen et al. 2020, eq. 1) over the 2N rows of two views.

    temperature: a number of size 1e-8 to 1e8, a 0-D tensor or Parameter, which gets its gradient, or a
    `LearnableTemperature`. reduction: "mean", "sum" or "none". group: None, or a process group (or `Ring`) over whose
    ranks the batch is spread: `ssl_fast.parallel` has the contract. Raises ValueError or TypeError for others.

    >>> loss = NTXentLoss(temperature=0.1)(z1, z2)  # z1, z2: (N, D), normalised inside
    """

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2: (N, D), row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.nt_xent(z1, z2, self.temperature, self.reduction, group=self.group)


class InfoNCELoss(_Loss):
    """`functional.info_nce` as a module: InfoNCE (van den Oord et al. 2018, eq. 4), MoCo's loss.

    temperature, reduction, group: as for `NTXentLoss`.

    >>> loss = InfoNCELoss(temperature=0.2)(query, positive, queue)  # queue: NegativeQueue
    """

    def forward(
        self,
        query: Tensor,
        positive: Tensor,
        negatives: Tensor | NegativeQueue | None = None,
        exclude: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """query, positive: (N, D); negatives: None (in batch), (M, D), (N, M, D) or a queue. Returns () or (N,).

        exclude: (ids of the queries, ids of the negatives): those with the query's id are left out.
        """
        return functional.info_nce(
            query, positive, negatives, self.temperature, self.reduction, exclude=exclude, group=self.group
        )  # fmt: skip


class MultiPositiveInfoNCELoss(_Loss):
    """`functional.multi_positive_info_nce` as a module: InfoNCE with several positives a query.

    form: "out" (the mean over positives outside the log) or "in". temperature, reduction, group: as for `NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        form: str = "out",
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        checks.choice("form", form, checks.FORMS)
        self.form = form

    def forward(self, query: Tensor, positives: Tensor, negatives: Tensor | NegativeQueue | None = None) -> Tensor:
        """query: (N, D); positives: (N, P, D); negatives: None (in batch), (M, D) or a queue. Returns () or (N,)."""
        return functional.multi_positive_info_nce(
            query, positives, negatives, self.temperature, self.form, self.reduction, group=self.group
        )  # fmt: skip


class SupConLoss(_Loss):
    """`functional.supcon` as a module: supervised contrastive loss (Khosla et al. 2020) of labels or many views.

    form: "out" (eq. 2, the usual one) or "in" (eq. 3). count_without_positive: whether rows without a positive, whose
    loss is 0, count in the mean. temperature, reduction, group: as for `NTXentLoss`.

    >>> loss = SupConLoss(temperature=0.1)(features, labels)  # (N, D), (N,); or (B, V, D) with or without labels (B,)
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        form: str = "out",
        count_without_positive: bool = True,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        checks.choice("form", form, checks.FORMS)
        checks.flags(count_without_positive=count_without_positive)
        self.form = form
        self.count_without_positive = count_without_positive

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """features: (N, D) with labels (N,), or (B, V, D) with labels (B,) or None. Returns () or a loss a row."""
        return functional.supcon(
            features, labels, self.temperature, self.form, self.count_without_positive, self.reduction, group=self.group
        )  # fmt: skip


class DCLLoss(_Loss):
    """`functional.dcl` as a module: decoupled contrastive loss (Yeh et al. 2022, eq. 6).

    temperature, reduction, group: as for `NTXentLoss`. sigma: None, or DCLW's; see `DCLWLoss`.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        sigma: float | None = None,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        if sigma is not None:
            checks.number("sigma", sigma, 1e-8)
        self.sigma = sigma

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2: (N, D), N at least 2, row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.dcl(z1, z2, self.temperature, self.sigma, self.reduction, group=self.group)


class DCLWLoss(DCLLoss):
    """`DCLLoss` whose positives are weighted by 2 - N softmax(similarity / sigma) (Yeh et al. 2022, eq. 7)."""

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        sigma: float = 0.5,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, sigma, reduction, group)


class HardNegativeNTXentLoss(_Loss):
    """`functional.hard_negative_nt_xent` as a module: hard negatives weigh more (Robinson et al. 2021).

    beta: 0 weighs all alike. tau_plus: probability that a negative is of the same class. temperature, reduction,
    group: as for `NTXentLoss`.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.5,
        beta: float = 1.0,
        tau_plus: float = 0.0,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        checks.number("beta", beta, 0.0)
        checks.number("tau_plus", tau_plus, 0.0, 1.0)
        self.beta = beta
        self.tau_plus = tau_plus

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """z1, z2: (N, D), N at least 2, row i of both from the same image. Returns (), or (2N,) for "none"."""
        return functional.hard_negative_nt_xent(
            z1, z2, self.temperature, self.beta, self.tau_plus, self.reduction, group=self.group
        )  # fmt: skip


class MoCoV3Loss(_Loss):
    """`functional.moco_v3` as a module: symmetric, times 2 * temperature (Chen et al. 2021, algorithm 1).

    temperature, reduction, group: as for `NTXentLoss`.
    """

    def __init__(self, temperature: float | Tensor | nn.Module = 1.0, reduction: str = "mean", group: Group = None):
        super().__init__(temperature, reduction, group)

    def forward(self, query1: Tensor, query2: Tensor, key1: Tensor, key2: Tensor) -> Tensor:
        """(N, D) each: predictions of both views and their momentum embeddings. Returns (), or (N,) for "none"."""
        return functional.moco_v3(query1, query2, key1, key2, self.temperature, self.reduction, group=self.group)


class ClipLoss(_Loss):
    """`functional.clip` as a module: CLIP's symmetric cross-entropy (Radford et al. 2021, fig. 3).

    temperature, reduction, group: as for `NTXentLoss`. normalize: False takes the rows as they are.

    >>> loss = ClipLoss()(images, texts, logit_scale)  # logit_scale: 0-D, gets its gradient; or a temperature above
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.07,
        normalize: bool = True,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        checks.flags(normalize=normalize)
        self.normalize = normalize

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor | None = None) -> Tensor:
        """a, b: (N, D), images and texts. logit_scale: 1 / temperature, in its place. Returns () or (2N,)."""
        temperature = self.temperature if logit_scale is None else temperature_of(logit_scale, a)
        return functional.clip(a, b, temperature, self.normalize, self.reduction, group=self.group)


class SigLipLoss(_Loss):
    """`functional.siglip` as a module: pairwise sigmoid loss (Zhai et al. 2023, eq. 1).

    bias: a number, or a 0-D tensor or Parameter, which gets its gradient. The others: as for `ClipLoss`.
    """

    def __init__(
        self,
        temperature: float | Tensor | nn.Module = 0.1,
        bias: float | Tensor = -10.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: Group = None,
    ):
        super().__init__(temperature, reduction, group)
        checks.scalar("bias", bias)
        checks.flags(normalize=normalize)
        self.bias = bias
        self.normalize = normalize

    def forward(self, a: Tensor, b: Tensor, logit_scale: float | Tensor | None = None) -> Tensor:
        """a, b: (N, D), images and texts. logit_scale: 1 / temperature, in its place. Returns () or (N,)."""
        temperature = self.temperature if logit_scale is None else temperature_of(logit_scale, a)
        return functional.siglip(a, b, temperature, self.bias, self.normalize, self.reduction, group=self.group)


def temperature_of(logit_scale: float | Tensor, a: Tensor) -> float | Tensor:
    """1 / logit_scale, for embeddings like a."""
    checks.embeddings("a", a)
    checks.scale("logit_scale", logit_scale, a.device)
    if isinstance(logit_scale, Tensor):
        return logit_scale.double().reciprocal()  # so that the kernels find the scale as it was
    return 1 / logit_scale


class InstanceDiscriminationLoss(_Loss):
    """Each image its own class, against a memory bank of all (Wu et al. 2018): in full, or with sampled negatives.

    negatives: None, the exact softmax over the bank (`functional.instance_discrimination`); or a number m, the
    original's noise-contrastive estimation with m sampled images a row (`functional.instance_nce`), whose buffer
    `normalizer` is set from the first batch and kept. temperature, reduction: as for `NTXentLoss`.

    >>> bank = MemoryBank(size=50000, dim=128, momentum=0.5)
    >>> loss = InstanceDiscriminationLoss(0.07)(features, index, bank)  # features: (N, D), index: (N,) rows of the bank
    >>> loss.backward(); bank.update_(index, features.detach())
    """

    normalizer: Tensor

    def __init__(
        self, temperature: float | Tensor | nn.Module = 0.07, negatives: int | None = None, reduction: str = "mean"
    ):  # fmt: skip
        super().__init__(temperature, reduction)
        if negatives is not None:
            checks.sizes(negatives=negatives)
            self.register_buffer("normalizer", torch.zeros((), dtype=torch.float64))
        self.negatives = negatives

    def forward(self, features: Tensor, index: Tensor, bank: Tensor | MemoryBank) -> Tensor:
        """features: (N, D); index: (N,), their images; bank: (n, D) or a `MemoryBank`. Returns () or (N,)."""
        if self.negatives is None:
            return functional.instance_discrimination(features, index, bank, self.temperature, self.reduction)
        rows = checked_rows(features, index, bank)  # before noise is drawn
        if self.normalizer.device != features.device:  # once: left on the CPU, it would be copied in every step
            self.normalizer = self.normalizer.to(features.device)
        # With replacement, as the original's uniform draw: the image itself may be among them.
        noise = torch.randint(rows.shape[0], (features.shape[0], self.negatives), device=features.device)
        self._set_normalizer(features, torch.cat([index[:, None], noise], 1), rows)
        return functional.instance_nce(
            features, index, noise, rows, self.normalizer, self.temperature, self.reduction
        )  # fmt: skip

    @torch.no_grad()
    def _set_normalizer(self, features: Tensor, candidates: Tensor, rows: Tensor) -> None:
        """In the first batch n times the mean exponential, as in the original; later as it is, without a sync."""
        similarities = sampled_similarity(unit_rows(features), rows, candidates).double()
        temperature = checks.temperature(self.temperature, features.device)
        # Kept in float64, whose exponentials hold; at the coldest temperatures a bound stands in for what they do not.
        estimate = rows.shape[0] * (similarities / temperature).exp().mean().clamp(1e-290, 1e290)
        self.normalizer.copy_(torch.where(self.normalizer > 0, self.normalizer, estimate))
