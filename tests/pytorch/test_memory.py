"""No N x N or N x K array, ever: the peak memory of a process that runs one loss, forward and backward."""

import sys

import pytest

from bench import composed
from bench.measure import loss_memory
from tests.helpers.backends import every_backend

MEGABYTE = 2**20
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc"),
]


def test_the_measure_sees_a_stored_matrix():
    assert loss_memory("nt_xent", 2048, backend="reference") > 4096**2 * 4


@every_backend("nt_xent", but=("reference", "triton"))  # a GPU's memory: kernels/test_losses_gpu.py
def test_nt_xent_of_32768_rows(backend):
    # The matrix would be 4.3 GB, the inputs are 17 MB.
    assert loss_memory("nt_xent", 16384, backend=backend) < 80 * MEGABYTE


@every_backend("info_nce", but=("reference", "triton"))
def test_info_nce_of_a_long_queue(backend):
    # The matrix would be 67 MB. The queue is 34 MB and is not copied.
    assert loss_memory("info_nce", 256, queue_size=65536, backend=backend) < 15 * MEGABYTE


@every_backend("similarity_lse", but=("reference", "triton"))
@pytest.mark.parametrize("name", composed.LOSSES)
def test_no_loss_stores_its_matrix(backend, name):
    # The matrix would be 268 MB or more, the inputs are 4 to 25 MB.
    case = composed.LOSSES[name]
    assert loss_memory(**case.memory(8192), backend=backend) < 100 * MEGABYTE
