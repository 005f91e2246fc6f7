import os

import pytest
import torch
from backends import BACKENDS, why_not
from hypothesis import HealthCheck, settings

# No deadline: a shared machine stalls. Seeds are fixed, so that a failure stays one.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True, print_blob=True)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header():
    reasons = {name: why_not("nt_xent", name) for name in BACKENDS}
    return "backends: " + ", ".join(f"{name} ({reason})" if reason else name for name, reason in reasons.items())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def one_and_two_threads():
    """Calls a function at 1 and at 2 threads and returns both results."""
    before = torch.get_num_threads()

    def call(function):
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(function())
        return results

    yield call
    torch.set_num_threads(before)
