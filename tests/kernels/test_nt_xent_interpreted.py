"""The shared tests of NT-Xent on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.losses.test_nt_xent import *  # noqa: F403
