"""The shared tests of the queue on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.updates.test_enqueue import *  # noqa: F403
