"""What every run of enqueue_ by a GPU's kernels must satisfy, interpreted or on a device: the bits of the reference."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from ssl_fast import checks, reference
from ssl_fast.kernels.enqueue import enqueue_

# How an (R, C) view lies in a larger tensor, whose other elements must stay as they are.
LAYOUTS = {
    "contiguous": lambda rows, columns: ((rows, columns), lambda base: base),
    "rows in the middle": lambda rows, columns: ((rows + 2, columns), lambda base: base[1:-1]),
    "columns in the middle": lambda rows, columns: ((rows, columns + 3), lambda base: base[:, 2:-1]),
    "transposed": lambda rows, columns: ((columns, rows), lambda base: base.T),
    "every second row": lambda rows, columns: ((2 * rows + 1, columns), lambda base: base[1::2]),
    "steps both ways": lambda rows, columns: ((2 * rows + 1, 3 * columns + 1), lambda base: base[1::2, 1::3]),
}
# Around the edges of a tile: one column, a power of two and its neighbours, more than one tile.
DIMS = (1, 2, 3, 127, 128, 129, 1023, 1024, 1025, 4096, 4100)


@dataclass(frozen=True)
class Case:
    """One call. size, dim, count: K, D, B."""

    size: int
    dim: int
    count: int
    pointer: int
    queue_dtype: torch.dtype = torch.float32
    keys_dtype: torch.dtype = torch.float32
    queue_layout: str = "contiguous"
    keys_layout: str = "contiguous"
    seed: int = 0


@st.composite
def cases(draw) -> Case:
    size = draw(st.integers(1, 50))
    return Case(
        size=size,
        dim=draw(st.integers(1, 70) | st.sampled_from(DIMS)),
        count=draw(st.integers(1, 120)),
        # A pointer outside the queue counts modulo K, as in the reference.
        pointer=draw(st.integers(0, size - 1) | st.integers(-3 * size, 3 * size)),
        queue_dtype=draw(st.sampled_from(checks.FLOATS)),
        keys_dtype=draw(st.sampled_from(checks.FLOATS)),
        queue_layout=draw(st.sampled_from(sorted(LAYOUTS))),
        keys_layout=draw(st.sampled_from(sorted(LAYOUTS))),
        seed=draw(st.integers(0, 2**31)),
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, -0.0 apart from 0.0; any NaN equals any other."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    nan = a.isnan()
    equal = a.contiguous().view(integer) == b.contiguous().view(integer)
    return bool(nan.equal(b.isnan()) and (equal | nan).all())


def _values(rows: int, columns: int, seed: int) -> torch.Tensor:
    """Numbers of all sizes, with some that break arithmetic; float64."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-12, 12, (rows, columns), generator=generator)
    values = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2.0**exponents
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65520.0, 1e-7, -1e30, 1e300])
    chosen = torch.rand(rows, columns, generator=generator) < 0.05
    values[chosen] = special[torch.randint(len(special), (int(chosen.sum()),), generator=generator)].double()
    return values


def _laid_out(values: torch.Tensor, dtype: torch.dtype, layout: str, device: str):
    """A tensor full of 7 and the view into it, by this layout, that holds the values."""
    shape, view_of = LAYOUTS[layout](*values.shape)
    base = torch.full(shape, 7.0, dtype=dtype, device=device)
    view = view_of(base)
    view.copy_(values.to(device, dtype))
    return base, view


def check(case: Case, device: str = "cpu", interpreted: bool = True, run=enqueue_) -> None:
    """The kernel changes queue and pointer as the reference does, and nothing else. run: Triton's, or the operator."""
    old = _values(case.size, case.dim, case.seed)
    new = _values(case.count, case.dim, case.seed + 1)
    if interpreted and case.queue_dtype == torch.bfloat16:
        # Triton's interpreter truncates to bfloat16 where devices round to the nearest: only keys
        # that bfloat16 holds exactly can agree there. The rounding itself is tested on a device.
        new = new.bfloat16().double()
    queue_base, queue = _laid_out(old, case.queue_dtype, case.queue_layout, device)
    expected_base, expected = _laid_out(old, case.queue_dtype, case.queue_layout, device)
    keys_base, keys = _laid_out(new, case.keys_dtype, case.keys_layout, device)
    keys_before = keys_base.clone()
    queue_ptr = torch.tensor([case.pointer], device=device)
    expected_ptr = queue_ptr.clone()

    reference.enqueue_(expected, expected_ptr, keys)
    run(queue, queue_ptr, keys)
    assert queue_ptr.equal(expected_ptr), (queue_ptr, expected_ptr)
    assert same_bits(queue_base, expected_base), (queue, expected)
    assert same_bits(keys_base, keys_before)
