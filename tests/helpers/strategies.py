"""Hypothesis strategies for the inputs that break a kernel's assumptions."""

import torch
from hypothesis import strategies as st

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# One block and a little more; the multi-block paths have fixed cases in the tests.
rows = st.one_of(st.integers(1, 9), st.integers(1, 70))
dims = st.one_of(st.integers(1, 9), st.integers(1, 140), st.sampled_from([16, 32, 64, 128]))
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31 - 1)

# 2 / 0.025 = 80 is where the fixed shift gives way to an online maximum.
BOUNDARY = 0.025
temperatures = st.one_of(
    st.floats(0.05, 1),
    st.floats(-1, -0.05),
    st.sampled_from([1e-3, 0.02, -0.02, -1e-3, BOUNDARY * (1 - 1e-6), BOUNDARY * (1 + 1e-6), -BOUNDARY, 30.0]),
)

KINDS = ["ordinary", "equal", "duplicates", "zeros", "large", "tiny", "opposite", "one-hot", "mixed norms"]
LAYOUTS = ["contiguous", "transposed", "sliced", "offset", "expanded rows", "expanded columns"]

kinds = st.sampled_from(KINDS)
layouts = st.sampled_from(LAYOUTS)


def embeddings(count: int, dim: int, dtype: torch.dtype, kind: str, seed: int) -> torch.Tensor:
    """(count, dim) rows of one of KINDS, each exact in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    # float16 holds neither 1e30 nor 1e-30.
    large, tiny = (1e2, 1e-4) if dtype == torch.float16 else (1e30, 1e-30)
    if kind == "equal":
        x[:] = x[0].clone()
    elif kind == "duplicates":
        x = x[torch.randint(max(1, count // 3), (count,), generator=generator)]
    elif kind == "zeros":
        x[torch.randint(count, (max(1, count // 3),), generator=generator)] = 0
    elif kind == "large":
        x *= large
    elif kind == "tiny":
        x *= tiny
    elif kind == "opposite":
        x[1::2] = -x[: count // 2]
    elif kind == "one-hot":
        x = torch.nn.functional.one_hot(torch.randint(dim, (count,), generator=generator), dim).double()
    elif kind == "mixed norms":
        x *= torch.tensor([1.0, large, tiny, 1e-2])[torch.randint(4, (count, 1), generator=generator)]
    return x.to(dtype)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The rows in other strides; expanded layouts repeat the first row or the first column."""
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1] + 3), float("nan"))
        wide[..., ::2, 2:-1] = x
        return wide[..., ::2, 2:-1]
    if layout == "offset":
        # One element on: aligned loads would fault or read beside.
        return torch.cat([x.new_full((1,), float("nan")), x.flatten()])[1:].view(x.shape)
    if layout == "expanded rows":
        return x[..., :1, :].expand(x.shape)
    if layout == "expanded columns":
        return x[..., :1].expand(x.shape)
    return x


def subsets(names):
    """Which of these require a gradient: every non-empty subset."""
    return st.sets(st.sampled_from(sorted(names)), min_size=1)


def upstream(count: int, seed: int, kind: str) -> torch.Tensor:
    """(count,) gradients of the loss rows in float32."""
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(count, generator=generator)
    if kind == "some zero":
        gradient[::2] = 0
    elif kind == "large":
        gradient *= 1e3
    return gradient


upstream_kinds = st.sampled_from(["random", "some zero", "large"])
