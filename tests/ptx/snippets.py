"""Kernels of a few PTX instructions, written by hand and run on numpy arrays."""

import numpy as np

from .simulator import Result, load, run

REGISTERS = """
    .reg .b16 %h<16>;
    .reg .b32 %r<64>;
    .reg .b64 %rd<64>;
    .reg .f32 %f<32>;
    .reg .f64 %fd<32>;
    .reg .pred %p<8>;
    .reg .b32 %tid;
    .reg .b64 %in, %out;
    ld.param.u64 %in, [in];
    ld.param.u64 %out, [out];
    mov.u32 %tid, %tid.x;
"""


def module(body: str, threads: int = 32, shared: int = 1024, target: str = "sm_80") -> str:
    """A kernel around `body`: %in and %out are its buffers, %tid the thread, `memory` shared memory."""
    return f"""
.version 8.0
.target {target}
.address_size 64
.shared .align 1024 .b8 memory[{shared}];
.visible .entry snippet(.param .u64 in, .param .u64 out) .reqntid {threads}
{{
{REGISTERS}
{body}
    ret;
}}
"""


def launch(text: str, source: np.ndarray, result: np.ndarray, grid=(1,), **how) -> Result:
    """Runs a `module` on the two arrays, in place."""
    arrays = (source, result)
    parameters = b"".join(array.ctypes.data.to_bytes(8, "little") for array in arrays)
    regions = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays]
    return run(load(text), parameters, regions, grid, **how)


def of_each_thread(body: str, threads: int = 32, source=(0,), **how) -> list[int]:
    """What each thread of a block leaves in %r0."""
    result = np.zeros(threads, np.uint32)
    store = "mul.wide.u32 %rd63, %tid, 4; add.s64 %rd63, %out, %rd63; st.global.b32 [%rd63], %r0;"
    launch(module(body + store, threads), np.array(source, np.uint32), result, **how)
    return result.tolist()


def evaluate(body: str, dtype, *operands: np.ndarray, **how) -> np.ndarray:
    """The result of `body`, elementwise: it reads %a, %b, %c, %d and writes %result, a register as wide as `dtype`."""
    names = "abcd"[: len(operands)]
    count = -(-len(operands[0]) // 32) * 32
    source = np.zeros((len(operands), count), np.uint64)
    for row, operand in zip(source, operands, strict=True):
        row[: len(operand)] = operand.view(f"u{operand.itemsize}")
        row[len(operand) :] = row[0]  # a block has 32 threads: those too many do the first again
    lines = ["mov.u32 %r0, %ctaid.x;", "mad.lo.s32 %r0, %r0, 32, %tid;", "mul.wide.u32 %rd0, %r0, 8;"]
    lines += ["add.s64 %rd1, %in, %rd0;", "add.s64 %rd2, %out, %rd0;"]
    bits = 8 * np.dtype(dtype).itemsize
    lines.append(f".reg .b{max(bits, 16)} %result;")
    for index, (name, operand) in enumerate(zip(names, operands, strict=True)):
        width = 8 * operand.itemsize
        lines.append(f".reg .b{max(width, 16)} %{name};")
        lines.append(f"ld.global.b{width} %{name}, [%rd1+{8 * count * index}];")
    lines += [body, f"st.global.b{bits} [%rd2], %result;"]
    result = np.zeros(count, np.uint64)
    launch(module("\n".join(lines)), source, result, (count // 32,), **how)
    return result[: len(operands[0])].astype(f"u{bits // 8}").view(dtype)
