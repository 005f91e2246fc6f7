"""Every operator, forward and backward, as the PTX that Triton makes of its kernels, simulated and held to float64."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from .cases import everything, fast


@pytest.mark.parametrize("case", fast(), ids=str)
def test_every_operator_and_kind(case):
    case.run()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", everything(), ids=str)
def test_everything(case, device):
    case.on(device).run()
