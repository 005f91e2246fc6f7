"""No N x N or N x K array, ever: the peak memory of a process that runs one loss, forward and backward."""

import subprocess
import sys

import pytest
from backends import every_fused_backend

MEGABYTE = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")

# Peak resident memory in kB, less what was resident before the loss. A small loss first: what is
# allocated once per process is not the loss's. Writing 5 to clear_refs sets the peak back.
PROGRAM = """
import torch, ssl_fast
from ssl_fast import NegativeQueue, functional

torch.set_num_threads(2)

def inputs(rows, negatives):
    pair = [torch.randn(rows, 128, requires_grad=True) for _ in range(2)]
    return [*pair, NegativeQueue(negatives, 128)] if negatives else pair

def status(field):
    return int(open("/proc/self/status").read().split(field)[1].split()[0])

with ssl_fast.backend({backend!r}):
    functional.{operator}(*inputs(4, {negatives} and 4)).backward()
    large = inputs({rows}, {negatives})
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS:")
    functional.{operator}(*large).backward()
print(status("VmHWM:") - before)
"""


def peak_of(operator: str, backend: str, rows: int, negatives: int = 0) -> int:
    """Bytes that one forward and backward pass needs beyond its inputs, whose gradients it counts.

    Two inputs of (rows, 128) float32 and, unless negatives is 0, a queue of (negatives, 128).
    """
    program = PROGRAM.format(operator=operator, backend=backend, rows=rows, negatives=negatives)
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout) * 1024


def test_the_measure_sees_a_stored_matrix():
    assert peak_of("nt_xent", "reference", 2048) > 4096**2 * 4


@every_fused_backend("nt_xent")
def test_nt_xent_of_32768_rows(backend):
    # The matrix would be 4.3 GB, the inputs are 17 MB.
    assert peak_of("nt_xent", backend, 16384) < 80 * MEGABYTE


@every_fused_backend("info_nce")
def test_info_nce_of_a_long_queue(backend):
    # The matrix would be 67 MB. The queue is 34 MB and is not copied.
    assert peak_of("info_nce", backend, 256, negatives=65536) < 15 * MEGABYTE
