"""A barrier, a wait, a mask or an address changed in the PTX of each kernel is noticed."""

import functools

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from .cases import Case, fast
from .mutations import MISTAKES, Mistake, Site, sites, spread, texts_of

CASES = fast()
# A kernel's mistakes are looked for in the first of these cases that launches it.
KERNELS = (
    "_attractions_kernel", "_ema_kernel", "_enqueue_kernel", "_exp_sums_kernel", "_loss_kernel", "_lse_kernel",
    "_pair_dots_kernel", "_paired_gradient_kernel", "_paired_walk_kernel", "_prepare_kernel", "_row_gradients_kernel",
    "_sum_kernel", "_temperature_kernel", "_walk_kernel", "_weights_kernel",
)  # fmt: skip


@functools.cache
def texts_by_case() -> dict[Case, dict[str, str]]:
    return {str(case): (case, texts_of(case)) for case in CASES}


def all_sites(kernel: str, mistake: Mistake, device: str) -> list[Site]:
    for case, texts in texts_by_case().values():
        if kernel in texts and case.machine.device == device:
            return list(sites(case, kernel, texts[kernel], mistake))
    return []


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_one_mistake_of_each_kind_is_noticed(mistake, kernel):
    """Not each site is a mistake: the compiler may have made two barriers where one is enough."""
    some = spread(all_sites(kernel, mistake, "sm_80"), 4)
    assert not some or any(site.noticed() for site in some), "\n".join(map(str, some))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("mistake", "share"), zip(MISTAKES, (0.85, 0.85, 0.8, 0.9), strict=True), ids=lambda x: getattr(x, "name", None)
)
def test_most_mistakes_are_noticed(mistake, share, device):
    some = [site for kernel in KERNELS for site in spread(all_sites(kernel, mistake, device), 12)]
    missed = [site for site in some if not site.noticed()]
    assert some
    assert len(missed) <= (1 - share) * len(some), "\n".join([f"{len(missed)} of {len(some)}:", *map(str, missed)])
