"""The shared tests of the momentum update on the Triton kernels, in Triton's interpreter (conftest.py)."""

from test_ema import *  # noqa: F403
from test_ema_options import *  # noqa: F403
