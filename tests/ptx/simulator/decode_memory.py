"""Loads, stores, atomics, asynchronous copies, fences."""

from __future__ import annotations

import re

from .instructions import ATOMICS, BYTES, SPACES
from .program import Instruction, PtxError
from .statement import Statement

# What orders or caches an access. The simulator executes accesses in order and has no caches.
_ORDERS = {"weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "gpu", "cta", "sys"}
_CACHES = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"}
_VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def _space(s: Statement) -> str:
    """Of `.shared::cta` too; `.shared::cluster` is not known."""
    names = [name for name in s.modifiers if name.removesuffix("::cta") in SPACES]
    return names[0].removesuffix("::cta") if names else "generic"


def _accept_access(s: Statement, *more: str, types: set[str]) -> None:
    spaces = {*SPACES, "shared::cta"}
    hints = {name for name in s.modifiers if re.match(r"(L1|L2|level)::", name)}
    s.accept(*_ORDERS, *_CACHES, *spaces, *hints, *more, types=types)


def _load_or_store(s: Statement) -> Instruction:
    _accept_access(s, *_VECTORS, types=set(BYTES) - {"tf32", "f16x2", "bf16x2"})
    elements = next((count for name, count in _VECTORS.items() if name in s.modifiers), 1)
    space = _space(s)
    load = s.mnemonic == "ld"
    values, address = (s.operands[0], s.operands[1]) if load else (s.operands[1], s.operands[0])
    base, offset = s.symbols.memory(address, space)
    slots = s.symbols.slots(values, s.type)
    if len(slots) != elements:
        raise PtxError("length of the vector")
    operands = [*slots, base] if load else [base, *slots]
    return s.instruction(s.mnemonic, operands, elements=elements, space=space, immediate=offset)


def _atomic(s: Statement) -> Instruction:
    """atom, and red, which is atom without a result."""
    kind = s.one_of(*ATOMICS)
    bits = {"b32", "b64", "u32", "s32", "u64", "s64"}
    _accept_access(s, kind, "noftz", types=bits | {"f32", "f64"} if kind == "add" else bits)
    operands = s.operands if s.mnemonic == "atom" else ["_", *s.operands]
    if len(operands) != (4 if kind == "cas" else 3):
        raise PtxError("number of operands")
    space = _space(s)
    base, offset = s.symbols.memory(operands[1], space)
    slots = [s.symbols.slot(operands[0]), base, *(s.symbols.slot(name, s.type) for name in operands[2:])]
    return s.instruction("atom", slots, space=space, variant=ATOMICS.index(kind), immediate=offset)


def _copy(s: Statement) -> Instruction:
    """The cp.async of sm_80."""
    form, *rest = s.modifiers[1:]
    if s.modifiers[0] != "async":
        raise PtxError("form of cp")
    if form == "commit_group":
        return s.instruction("cp_async_commit", [])
    if form == "wait_group":
        return s.instruction("cp_async_wait", [], immediate=s.number(0))
    if form == "wait_all":
        return s.instruction("cp_async_wait", [], flags=frozenset({"wait_all"}))
    known = {"shared", "shared::cta", "global"} | {name for name in rest if name.startswith("L2::")}
    if form not in ("ca", "cg") or not known.issuperset(rest):
        raise PtxError("form of cp.async")
    size = s.number(2)
    if size not in ((16,) if form == "cg" else (4, 8, 16)):
        raise PtxError(f"{size} bytes")
    destination, destination_offset = s.symbols.memory(s.operands[0], "shared")
    source, offset = s.symbols.memory(s.operands[1], "global")
    # Of the source fewer bytes may be read; zeros fill the rest.
    source_bytes = s.slot(3, "u32") if len(s.operands) > 3 else s.symbols.constant(size)
    return s.instruction(
        "cp_async",
        [destination, source, source_bytes],
        elements=size,
        immediate=offset,
        destination_offset=destination_offset,
    )


def _fence(s: Statement) -> Instruction:
    if "proxy" in s.modifiers:
        s.accept("proxy", "async", "async::shared", "shared", "shared::cta", "async::shared::cta", "async::global")
        asynchronous = any(name.startswith("async") for name in s.modifiers)
        return s.instruction("fence_proxy", [], flags=frozenset({"async_proxy"} if asynchronous else ()))
    s.accept(*_ORDERS, "sc", "gl")
    return s.instruction("fence", [])


DECODERS = {
    "ld": _load_or_store,
    "st": _load_or_store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _copy,
    "fence": _fence,
    "membar": _fence,
}
