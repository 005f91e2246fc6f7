"""Whether the simulator notices what is broken: kernels with one barrier, wait, mask or address changed in their PTX.

A missing barrier, wait or mask must give a report or a fault: its result may come out right. A wrong address may lie
within the right buffer; then the result must differ.

What is found does not depend on luck: places accessed without a barrier between are reported in every order of the
warps. What is not found, by looking at each in the PTX that Triton 3.8 writes:

- barriers: those before the first copies into a second buffer, where nothing was accessed yet; the one at the head of a
  pipelined loop, after which nothing is read that an earlier barrier did not cover; those between the exchanges of a
  sort after which each warp writes only what it alone has read.
- waits: the one at the head of a pipelined loop, after which nothing was committed since the wait before it.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from . import small_kernels as kernels
from .compile import compile_to_ptx, parameters, union
from .requirements import needs_triton
from .simulator import Fault, load, run

pytestmark = needs_triton


class Change(NamedTuple):
    """Each match of `pattern` is replaced in turn."""

    pattern: str
    replacement: Callable[[re.Match[str]], str]

    def variants(self, text: str) -> Iterator[str]:
        for match in re.finditer(self.pattern, text):
            yield text[: match.start()] + self.replacement(match) + text[match.end() :]


def weaker(match: re.Match[str]) -> str:
    return re.sub(r"\d+", lambda number: str(int(number[0]) + 1), match[0])


CHANGES = {
    "barrier taken out": Change(r"bar\.sync\s+0;", lambda match: ""),
    # Waits that follow each other at once are one: each by itself has no effect.
    "wait weaker by a group": Change(r"(cp\.async\.wait_group\s+\d+;\s*)+", weaker),
    "mask of a load taken off": Change(r"@%p\d+ (ld\.global)", lambda match: match[1]),
    "index doubled": Change(r"(m\w+\.wide\.\w32\s+\S+, \S+), 4", lambda match: f"{match[1]}, 8"),
    "place in shared memory moved": Change(
        r"((?:st|ld)\.shared.*\[ ?%r\d+)(?: ?\+ ?(\d+))? ?\]", lambda match: f"{match[1]}+{int(match[2] or 0) + 16}]"
    ),
}


def softmax(n):
    x, out = torch.randn(3, n), torch.empty(3, n)
    return kernels.softmax, (3,), (x, out, n), {"width": 1024, "num_warps": 4}


def add():
    x, y, out = (torch.randn(100) for _ in range(3))
    return kernels.add, (1,), (x, y, out, 100), {"block": 1024, "num_warps": 4}


def product(dtype, precision):
    a, b, out = torch.randn(32, 64).to(dtype), torch.randn(64, 64).to(dtype), torch.empty(32, 64)
    options = {"m": 32, "n": 64, "block": 16, "transpose_a": False, "transpose_b": False, "precision": precision}
    return kernels.matmul, (1,), (a, b, out, 64), {**options, "num_warps": 4, "num_stages": 3}


def cumulative():
    x, keys = torch.randn(512), torch.randint(-1000, 1000, (512,), dtype=torch.int32)
    return kernels.sum_and_sort, (1,), (x, torch.empty(512), keys, torch.empty_like(keys)), {"n": 512, "num_warps": 4}


LAUNCHES = {
    "add": add,
    "softmax": lambda: softmax(1024),
    "softmax, masked": lambda: softmax(100),
    "sums and sorting": cumulative,
    "product, ieee": lambda: product(torch.float32, "ieee"),
    "product, tf32": lambda: product(torch.float32, "tf32"),
    "product, bf16": lambda: product(torch.bfloat16, "ieee"),
}


REPORTED, WRONG, UNNOTICED = "reported", "wrong", "unnoticed"


def noticed(launch: str, change: str) -> list[str]:
    """Of each change of its kind: REPORTED, which a fault is too, WRONG in its result, or UNNOTICED."""
    kernel, grid, arguments, options = LAUNCHES[launch]()
    compiled = compile_to_ptx(kernel, arguments, grid, options, "sm_80")
    packed, regions = parameters(compiled, kernel, arguments, options)
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]

    def outcome(text: str) -> tuple[str, list[torch.Tensor]]:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        try:
            result = run(load(text), packed, union(regions), grid, shared=compiled.shared_bytes, limit=10**6)
        except Fault:
            return REPORTED, []
        return (REPORTED if result.reports else ""), [tensor.clone() for tensor in tensors]

    found, right = outcome(compiled.ptx)
    assert not found
    each = []
    for text in CHANGES[change].variants(compiled.ptx):
        found, result = outcome(text)
        same = found or all(torch.equal(a, b) for a, b in zip(result, right, strict=True))
        each.append(found or (UNNOTICED if same else WRONG))
    return each


def share(change: str, launches, *counted: str) -> tuple[float, int]:
    """Of the changes the part that is noticed as `counted` says, and how many changes there are."""
    each = [found for launch in launches for found in noticed(launch, change)]
    return sum(found in counted for found in each) / len(each), len(each)


QUICK = ["softmax", "product, tf32"]  # to compile, too
of_some_and_all = pytest.mark.parametrize(
    "launches", [QUICK, pytest.param([*LAUNCHES], marks=pytest.mark.slow)], ids=["some", "all"]
)


@of_some_and_all
def test_missing_barriers(launches):
    found, of = share("barrier taken out", launches, REPORTED)
    assert of >= 8
    assert found >= 0.75  # with Triton 3.8: 10 of 12, and 34 of 41


@of_some_and_all
def test_weak_waits(launches):
    found, of = share("wait weaker by a group", launches, REPORTED)
    assert of >= 2
    assert found >= 0.7  # with Triton 3.8: 3 of 4, and 8 of 10


def test_missing_masks():
    # 100 elements in blocks of 1024: every load has lanes that must not load.
    found, of = share("mask of a load taken off", ["add", "softmax, masked"], REPORTED)
    assert of >= 10
    assert found == 1


@of_some_and_all
@pytest.mark.parametrize("change", ["index doubled", "place in shared memory moved"])
def test_wrong_addresses(change, launches):
    # Where most lanes are masked, an address may be one that no lane uses.
    found, of = share(change, [launch for launch in launches if launch != "softmax, masked"], REPORTED, WRONG)
    assert of >= 5
    assert found == 1


if __name__ == "__main__":  # python -m tests.ptx.test_simulator_notices
    for change in CHANGES:
        for launch in LAUNCHES:
            each = noticed(launch, change)
            print(f"{change}: {launch}: {len(each) - each.count(UNNOTICED)} of {len(each)}: {' '.join(each)}")
