"""Matrix instructions: ldmatrix, stmatrix, mma, wgmma."""

from __future__ import annotations

import re

from .program import Instruction, PtxError
from .statement import Statement

# (result, a and b) -> the shapes that matrix.h implements.
_MMA = {
    ("f32", "f16"): {"m16n8k8", "m16n8k16"},
    ("f16", "f16"): {"m16n8k8", "m16n8k16"},
    ("f32", "bf16"): {"m16n8k8", "m16n8k16"},
    ("f32", "tf32"): {"m16n8k4", "m16n8k8"},
    ("f64", "f64"): {"m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"},
}


def _load_or_store_matrix(s: Statement) -> Instruction:
    s.accept("sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta", types={"b16"})
    count = int(s.one_of("x1", "x2", "x4")[1:])
    s.one_of("m8n8")
    load = s.mnemonic == "ldmatrix"
    registers, address = s.operands if load else reversed(s.operands)
    base, offset = s.symbols.memory(address, "shared")
    slots = s.symbols.slots(registers)
    if len(slots) != count:
        raise PtxError("number of registers")
    flags = frozenset({"transpose"} if "trans" in s.modifiers else ())
    return s.instruction(s.mnemonic, [*slots, base], elements=count, flags=flags, immediate=offset)


def _shape(s: Statement) -> tuple[str, int, int, int]:
    name = next((name for name in s.modifiers if re.fullmatch(r"m\d+n\d+k\d+", name)), "")
    if not name:
        raise PtxError("no shape")
    rows, columns, depth = map(int, re.findall(r"\d+", name))
    return name, rows, columns, depth


def _mma(s: Statement) -> Instruction:
    shape, rows, columns, depth = _shape(s)
    result, a_type, b_type, addend = s.types
    s.accept("sync", "aligned", shape, "row", "col", types=set(s.types))
    if a_type != b_type or result != addend or shape not in _MMA.get((result, a_type), ()):
        raise PtxError("types or shape of mma")
    if [name for name in s.modifiers if name in ("row", "col")] != ["row", "col"]:
        raise PtxError("layout of mma")
    d, a, b, c = (s.symbols.slots(text) for text in s.operands)
    return s.instruction(
        "mma", [*d, *a, *b, *c], type=result, source_type=a_type, elements=len(d),
        rows=rows, columns=columns, depth=depth, a_registers=len(a), b_registers=len(b),
    )  # fmt: skip


def _wgmma(s: Statement) -> Instruction:
    form = s.modifiers[0]
    if form in ("fence", "commit_group", "wait_group"):
        s.accept(form, "sync", "aligned")
        opcode = {"fence": "wgmma_fence", "commit_group": "wgmma_commit", "wait_group": "wgmma_wait"}[form]
        return s.instruction(opcode, [], immediate=s.number(0) if form == "wait_group" else 0)
    shape, rows, columns, depth = _shape(s)
    s.accept("mma_async", "sync", "aligned", shape, types={"f32", "f16", "bf16", "tf32"})
    result, a_type, b_type = s.types
    if a_type != b_type or result != "f32" or rows != 64:
        raise PtxError("types of wgmma")
    a_in_registers = s.operands[1].startswith("{")
    d, a = s.symbols.slots(s.operands[0]), s.symbols.slots(s.operands[1])
    if len(d) != columns // 2:
        raise PtxError("number of registers")
    # After scale-d come scale-a, scale-b and, for 16-bit types, whether a and b are stored transposed.
    scale_a, scale_b, *transposed = (s.number(index) for index in range(4, len(s.operands)))
    if (scale_a, scale_b) != (1, 1):
        raise PtxError("negated operand of wgmma")
    if a_in_registers:
        transposed = [0, *transposed]
    flags = {name for name, set_ in zip(("transpose_a", "transpose_b"), transposed, strict=False) if set_}
    slots = [*d, *a, s.slot(2, "b64"), s.slot(3, "pred")]
    return s.instruction(
        "wgmma", slots, type=result, source_type=a_type, elements=len(d), flags=frozenset(flags),
        rows=rows, columns=columns, depth=depth, a_registers=len(a) if a_in_registers else 0,
    )  # fmt: skip


DECODERS = {
    "ldmatrix": _load_or_store_matrix,
    "stmatrix": _load_or_store_matrix,
    "mma": _mma,
    "wgmma": _wgmma,
}
