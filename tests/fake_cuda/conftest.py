import fake_device
import pytest


@pytest.fixture(scope="session")
def _possible():
    reason = fake_device.why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def gpu(_possible):
    """Everything inside is on cuda:1, while cuda:0 is the current device."""
    with fake_device.fake_cuda(current=0) as device:
        yield device
