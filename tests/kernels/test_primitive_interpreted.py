"""The shared tests of the primitive on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.operators.test_similarity import *  # noqa: F403
