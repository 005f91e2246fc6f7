"""Every operator, forward and backward, as the PTX that Triton makes of its kernels, simulated and held to float64."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="triton is not installed")

from . import losses
from .cases import Case, everything, fast
from .kinds import PLAIN
from .launch import Machine


@pytest.mark.parametrize("case", fast(), ids=str)
def test_every_operator_and_kind(case):
    case.run()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", everything(), ids=str)
def test_everything(case, device):
    case.on(device).run()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=25)
@given(
    kind=st.sampled_from(PLAIN), device=st.sampled_from(["sm_80", "sm_90"]),
    case=st.sampled_from(["nt_xent", "info_nce in batch", "info_nce shared", "info_nce queue", "info_nce own"]),
    count=st.integers(1, 70), negatives=st.integers(1, 90), dim=st.integers(1, 300),
    temperature=st.sampled_from([1.0, 0.1, -0.1, 0.02]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(kind, device, case, count, negatives, dim, temperature, seed):
    options = {"count": count, "negatives": negatives, "dim": dim, "temperature": temperature, "seed": seed}
    Case(case, kind, losses.loss, {"case": case, "learnt": True, **options}, Machine(device)).run()
