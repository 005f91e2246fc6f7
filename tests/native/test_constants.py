"""Numbers and codes have one value in C++ (csrc/common/constants.h), in Python and in the Triton kernels."""

import pytest

from ssl_fast.formulas import rows, scalars
from ssl_fast.operators import calls, codes, loading

pytestmark = pytest.mark.skipif(
    loading.extension is None, reason=f"the compiled extension is missing, {loading.why_missing}"
)


@pytest.fixture(scope="module")
def compiled() -> dict[str, float]:
    return loading.extension.constants()


def test_python_has_the_values_of_the_extension(compiled):
    assert compiled["EPS"] == rows.EPS
    assert (compiled["LEAST_SCALE"], compiled["MOST_SCALE"]) == scalars.SCALES
    assert (compiled["LN2"], compiled["LOG2E"]) == (calls.LN2, calls.LOG2E)


def test_masks_of_the_operator_have_the_codes_of_the_extension(compiled):
    for name in ("ALL", "NOT_SELF", "IDS_DIFFER", "IDS_EQUAL"):
        assert compiled[name] == getattr(codes, name), name


def test_reductions_have_the_codes_of_the_extension(compiled):
    assert [compiled[name.upper()] for name in codes.REDUCTIONS] == list(range(len(codes.REDUCTIONS)))


def test_triton_kernels_have_the_values_of_the_extension(compiled):
    pytest.importorskip("triton")
    from ssl_fast.kernels.engine import constants

    for name, value in compiled.items():
        found = getattr(constants, name)
        assert getattr(found, "value", found) == value, name
