"""The shared tests of what all losses share on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.losses.test_losses import *  # noqa: F403
