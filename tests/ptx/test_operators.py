"""Every operator, forward and backward, as the PTX that Triton makes of its kernels, simulated and held to float64."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from .cases import Case, everything, fast
from .launch import Reported


def _param(case: Case):
    options = case.options
    float32_keys = options.get("keys_dtype", torch.float32) == torch.float32
    if options.get("normalize") is True and options.get("dim") in (33, 40) and float32_keys:
        reason = "_enqueue_kernel adds the squares of a row with a fused product in some lanes and without in others"
        return pytest.param(case, marks=pytest.mark.xfail(strict=True, raises=Reported, reason=reason), id=str(case))
    return pytest.param(case, id=str(case))


@pytest.mark.parametrize("case", [_param(case) for case in fast()])
def test_every_operator_and_kind(case):
    case.run()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", [_param(case) for case in everything()])
def test_everything(case, device):
    case.on(device).run()
