"""The shared tests of the momentum update on the Triton kernels, in Triton's interpreter (conftest.py)."""

from tests.updates.test_ema import *  # noqa: F403
from tests.updates.test_ema_options import *  # noqa: F403
