"""mma, ldmatrix and stmatrix: fragments laid out as the PTX ISA draws them, against matrix products of numpy."""

import itertools

import numpy as np
import pytest
import torch

from .requirements import needs_simulator
from .snippets import launch, module

pytestmark = needs_simulator


def of_a(lane, i, shape):
    """Row and column of element i of a lane's fragment of a; f64 m8n8k4 has one element."""
    group, inner = lane // 4, lane % 4
    if shape == "16 bits":
        return group + (8 if i // 2 % 2 else 0), inner * 2 + i % 2 + (8 if i >= 4 else 0)
    return group + (8 if i % 2 else 0), inner + 4 * (i // 2)


def of_b(lane, i, shape):
    group, inner = lane // 4, lane % 4
    if shape == "16 bits":
        return inner * 2 + i % 2 + (8 if i >= 2 else 0), group
    return inner + 4 * i, group


def of_c(lane, i):
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + i % 2


def fragment(matrix, place, count):
    """[lane][element] of a matrix."""
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


def multiplied(instruction, a, b, c, result_dtype):
    """d as [lane][element]; the fragments are contiguous bytes of each lane."""
    parts = [np.ascontiguousarray(x).view(np.uint8).reshape(32, -1) for x in (a, b, c)]
    source = np.concatenate([part.ravel() for part in parts])
    wide = a.dtype == np.float64
    register, bits, size = ("rd", 64, 8) if wide else ("r", 32, 4)
    lines, names, next_register, start = [], [], 10, 0
    for part in parts:
        registers = [f"%{register}{next_register + i}" for i in range(part.shape[1] // size)]
        next_register += len(registers)
        lines += [f"mul.wide.u32 %rd0, %tid, {part.shape[1]};", "add.s64 %rd0, %in, %rd0;"]
        lines += [f"ld.global.b{bits} {r}, [%rd0+{start + size * i}];" for i, r in enumerate(registers)]
        names.append("{" + ", ".join(registers) + "}")
        start += part.size
    count = parts[2].shape[1] // size
    result = [f"%{register}{40 + i}" for i in range(count)]
    lines.append(f"{instruction} {{{', '.join(result)}}}, {', '.join(names)};")
    lines += [f"mul.wide.u32 %rd0, %tid, {size * count};", "add.s64 %rd0, %out, %rd0;"]
    lines += [f"st.global.b{bits} [%rd0+{size * i}], {r};" for i, r in enumerate(result)]
    out = np.zeros((32, size * count), np.uint8)
    launch(module("\n".join(lines)), source, out)
    return out.view(result_dtype)


def bfloat(x):
    return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("k", [8, 16])
@pytest.mark.parametrize(("kind", "result"), [("f16", "f16"), ("f16", "f32"), ("bf16", "f32")])
def test_products_of_16_bits(kind, result, k):
    generator = np.random.default_rng(k)
    # Small integers: every sum is exact in all formats, so that results are equal.
    a, b, c = (generator.integers(-8, 9, shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8)))
    pack = bfloat if kind == "bf16" else lambda x: x.astype(np.float16).view(np.uint16)
    shape = "16 bits"
    dtype = np.dtype("f4" if result == "f32" else "f2")
    d = multiplied(
        f"mma.sync.aligned.m16n8k{k}.row.col.{result}.{kind}.{kind}.{result}",
        fragment(pack(a), lambda lane, i: of_a(lane, i, shape), k // 2),
        fragment(pack(b), lambda lane, i: of_b(lane, i, shape), k // 4),
        fragment(c, of_c, 4).astype(dtype),
        dtype,
    )
    assert np.array_equal(d, fragment(a @ b + c, of_c, 4))


@pytest.mark.parametrize("k", [4, 8])
def test_products_of_tf32(k):
    generator = np.random.default_rng(k)
    a, b, c = (generator.standard_normal(shape).astype(np.float32) for shape in ((16, k), (k, 8), (16, 8)))
    d = multiplied(
        f"mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32",
        fragment(a, lambda lane, i: of_a(lane, i, "32 bits"), k // 2),
        fragment(b, lambda lane, i: of_b(lane, i, "32 bits"), k // 4),
        fragment(c, of_c, 4),
        "f4",
    )
    # The units do not read the low 13 bits of a and b.
    cut_a, cut_b = ((x.view(np.uint32) & ~np.uint32(0x1FFF)).view(np.float32).astype(float) for x in (a, b))
    assert np.allclose(d, fragment(cut_a @ cut_b + c, of_c, 4), rtol=1e-6, atol=1e-6)
    assert not np.allclose(d, fragment(a.astype(float) @ b + c, of_c, 4), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("m", "k"), [(8, 4), (16, 4), (16, 8), (16, 16)])
def test_products_of_doubles(m, k):
    generator = np.random.default_rng(k)
    a, b, c = (generator.standard_normal(shape) for shape in ((m, k), (k, 8), (m, 8)))
    d = multiplied(
        f"mma.sync.aligned.m{m}n8k{k}.row.col.f64.f64.f64.f64",
        fragment(a, lambda lane, i: of_a(lane, i, "64 bits"), m * k // 32),
        fragment(b, lambda lane, i: of_b(lane, i, "64 bits"), k // 4),
        fragment(c, of_c, m // 4),
        "f8",
    )
    assert np.allclose(d, fragment(a @ b + c, of_c, m // 4), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("count", "transposed"), list(itertools.product((1, 2, 4), (False, True))))
def test_matrices_loaded_from_shared_memory(count, transposed):
    """Each thread writes one row of a matrix; stmatrix then puts the fragments elsewhere, as they were."""
    rows = np.arange(8 * count * 8, dtype=np.uint16).reshape(count, 8, 8)
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    trans = ".trans" if transposed else ""
    body = f"""
        mov.u32 %r1, memory;
        mad.lo.s32 %r2, %tid, 16, %r1;
        mul.wide.u32 %rd0, %tid, 16;
        add.s64 %rd1, %in, %rd0;
        setp.lt.u32 %p0, %tid, {8 * count};
        @%p0 ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd1];
        @%p0 st.shared.v4.b32 [%r2], {{%r4, %r5, %r6, %r7}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r2];
        mul.wide.u32 %rd2, %tid, {4 * count};
        add.s64 %rd2, %out, %rd2;
        {" ".join(f"st.global.b32 [%rd2+{4 * i}], %r{20 + i};" for i in range(count))}
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r2+512], {{{registers}}};
        bar.sync 0;
        @%p0 ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r2+512];
        @%p0 st.global.v4.b32 [%rd1], {{%r4, %r5, %r6, %r7}};
    """
    source, out = rows.copy(), np.zeros((32, count, 2), np.uint16)
    assert not launch(module(body), source, out).reports
    wanted = rows.transpose(0, 2, 1) if transposed else rows
    for lane, matrix, i in itertools.product(range(32), range(count), range(2)):
        assert out[lane, matrix, i] == wanted[matrix, lane // 4, lane % 4 * 2 + i]
    assert np.array_equal(source, rows)
