"""No N x N or N x K array, ever: the peak memory of a process that runs one loss, forward and backward."""

import subprocess
import sys

import pytest
from backends import every_fused_backend

MEGABYTE = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")

# Peak resident memory in kB, less what was resident before the loss. A small loss first: what is
# allocated once per process is not the loss's.
PROGRAM = """
import resource, torch, ssl_fast
from ssl_fast import NegativeQueue, functional

torch.set_num_threads(2)

def run({names}):
    loss = functional.{call}
    loss.backward()

with ssl_fast.backend({backend!r}):
    run(*(torch.randn(4, 8, requires_grad=True) for _ in range({tensors})))
    inputs = [torch.randn(*shape, requires_grad=True) for shape in {shapes}]
    before = int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0])
    run(*inputs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def peak_of(backend: str, call: str, **shapes) -> int:
    """Bytes that one forward and backward pass needs beyond its inputs, whose gradients it counts."""
    program = PROGRAM.format(
        names=", ".join(shapes), call=call, backend=backend, tensors=len(shapes), shapes=list(shapes.values())
    )
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout) * 1024


def nt_xent(backend, rows, dim=128):
    return peak_of(backend, "nt_xent(z1, z2)", z1=(rows // 2, dim), z2=(rows // 2, dim))


def test_the_measure_sees_a_stored_matrix():
    assert nt_xent("reference", 4096) > 4096**2 * 4


@every_fused_backend("nt_xent")
def test_nt_xent(backend):
    # The matrix would be 268 MB; inputs' gradients, unit rows and their copies are 4 MB each.
    assert nt_xent(backend, 8192) < 60 * MEGABYTE


@pytest.mark.slow
@every_fused_backend("nt_xent")
def test_nt_xent_of_32768_rows(backend):
    # The matrix would be 4.3 GB, the inputs are 17 MB.
    assert nt_xent(backend, 32768) < 160 * MEGABYTE


@every_fused_backend("info_nce")
def test_info_nce_of_a_long_queue(backend):
    # The matrix would be 67 MB. The queue is 34 MB and is not copied.
    call = "info_nce(query, positive, as_queue(rows))"
    assert info_nce(backend, call) < 30 * MEGABYTE
