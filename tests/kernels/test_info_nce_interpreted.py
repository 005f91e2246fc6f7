"""The shared tests of InfoNCE on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.losses.test_info_nce import *  # noqa: F403
