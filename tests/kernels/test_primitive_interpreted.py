"""The shared tests of the primitive on the Triton kernels, in Triton's interpreter (conftest.py)."""

from test_similarity import *  # noqa: F403
