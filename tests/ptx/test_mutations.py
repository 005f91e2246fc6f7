"""A barrier, a wait, a mask or an address changed in the PTX of each kernel is noticed."""

import functools
import itertools

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from .cases import Case, fast
from .mutations import MISTAKES, Mistake, Site, sites, spread, texts_of

KERNELS = (
    "_weighted_rows_kernel", "_ema_kernel", "_enqueue_kernel", "_symmetric_tiles_kernel", "_loss_kernel", "_lse_kernel",
    "_pair_dots_kernel", "_paired_gradient_kernel", "_paired_walk_kernel", "_prepare_kernel", "_row_gradients_kernel",
    "_sum_kernel", "_scale_kernel", "_online_softmax_kernel", "_weights_kernel",
)  # fmt: skip
# For each of MISTAKES the least share of its sites that must be noticed. Not all can be: to take out a mask that lets
# every lane through, or one of two barriers in a row, changes nothing.
SHARES = (0.8, 0.8, 0.5, 0.75)


@functools.cache
def launched() -> dict[tuple[str, str], tuple[Case, str]]:
    """By kernel and device: the first case that launches it, and the PTX."""
    found: dict[tuple[str, str], tuple[Case, str]] = {}
    # With a scale on the device two kernels are launched, of which one has no work: those cases come last.
    for case in sorted(fast(), key=lambda case: case.options.get("learnt", False)):
        for kernel, text in texts_of(case).items():
            found.setdefault((kernel, case.machine.device), (case, text))
    return found


def all_sites(kernel: str, mistake: Mistake, device: str) -> list[Site]:
    if (kernel, device) not in launched():
        return []
    case, text = launched()[kernel, device]
    return list(sites(case, kernel, text, mistake))


@pytest.mark.long
def test_every_kernel_is_launched():
    assert {kernel for kernel, device in launched() if device == "sm_80"} == set(KERNELS)


def _pairs() -> list:
    """Of each kernel one mistake in the fast tests, of two kernels all."""
    pairs = []
    for mistake, kernel in itertools.product(MISTAKES, KERNELS):
        is_fast = mistake is MISTAKES[-1] or kernel in ("_weighted_rows_kernel", "_online_softmax_kernel")
        marks = () if is_fast else pytest.mark.slow
        pairs.append(pytest.param(mistake, kernel, marks=marks, id=f"{mistake.name}-{kernel}"))
    return pairs


@pytest.mark.parametrize(("mistake", "kernel"), _pairs())
def test_one_mistake_of_each_kind_is_noticed(mistake, kernel):
    """One of up to four sites is enough: some barriers and masks do nothing. A kernel without such a site passes."""
    some = spread(all_sites(kernel, mistake, "sm_80"), 4)
    assert not some or any(site.noticed() for site in some), "\n".join(map(str, some))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("mistake", "share"),
    list(zip(MISTAKES, SHARES, strict=True)),
    ids=lambda x: getattr(x, "name", None),
)
def test_most_mistakes_are_noticed(mistake, share, device):
    some = [site for kernel in KERNELS for site in spread(all_sites(kernel, mistake, device), 12)]
    missed = [site for site in some if not site.noticed()]
    assert some
    assert len(missed) <= (1 - share) * len(some), "\n".join([f"{len(missed)} of {len(some)}:", *map(str, missed)])
