import signal

import pytest
import torch

from tests.helpers.small_runs import TEST_IMAGES, TRAIN_IMAGES, limit_digits


@pytest.fixture
def few_digits(monkeypatch):
    limit_digits(monkeypatch, TRAIN_IMAGES, TEST_IMAGES)


@pytest.fixture(autouse=True)
def ctrl_c_raises():
    """As in a terminal: a shell's background job, and what it starts, ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks of a few channels: threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
