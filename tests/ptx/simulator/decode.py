"""The text of one instruction to an Instruction. Anything that the interpreter does not implement raises PtxError.

Each mnemonic has one function here or in a decode_*.py beside it; it names the modifiers and types it accepts.
"""

from __future__ import annotations

import re

from . import decode_matrix, decode_memory, decode_warp
from .instructions import COMBINATIONS, COMPARISONS, SPACES, words
from .program import Instruction, PtxError
from .statement import FLOATS, HALVES, INTEGERS, Statement, split_operands
from .symbols import Symbols

_WIDER = {"s32": "s64", "u32": "u64", "s16": "s32", "u16": "u32"}
_BITS = {"b16", "b32", "b64"}


def decode(text: str, symbols: Symbols) -> tuple[Instruction, str]:
    """The instruction, and for a branch the name of its label or table of labels."""
    predicate, negated = -1, False
    if match := re.match(r"@(!?)\s*([\w$%]+)\s+(.*)", text):
        predicate, negated, text = symbols.slot(match[2]), match[1] == "!", match[3]
    match = re.match(r"([\w.:]+)\s*(.*)", text)
    if not match:
        raise PtxError("no instruction")
    mnemonic, *modifiers = match[1].split(".")
    statement = Statement(mnemonic, modifiers, split_operands(match[2]), symbols)
    if mnemonic not in _DECODERS:
        raise PtxError("unknown instruction")
    instruction = _DECODERS[mnemonic](statement)
    instruction.predicate, instruction.negated = predicate, negated
    label = statement.operands[{"bra": 0, "brx": 1}[mnemonic]] if mnemonic in ("bra", "brx") else ""
    return instruction, label


def _arithmetic(s: Statement) -> Instruction:
    """Two operands and a result of one type."""
    allowed = {
        "add": {"rn", "ftz"},
        "sub": {"rn", "ftz"},
        "mul": {"rn", "ftz", "lo", "hi", "wide"},
        "div": {"rn", "ftz", "approx", "full"},
        "min": {"ftz", "NaN"},
        "max": {"ftz", "NaN"},
    }
    types = {
        "div": INTEGERS | {"f32", "f64"},
        "rem": INTEGERS,
        "copysign": {"f32", "f64"},
        "and": _BITS | {"pred"},
        "or": _BITS | {"pred"},
        "xor": _BITS | {"pred"},
        "shl": _BITS,
        "shr": _BITS | INTEGERS,
    }
    flags, rounding = s.accept(*allowed.get(s.mnemonic, ()), types=types.get(s.mnemonic, INTEGERS | FLOATS | HALVES))
    opcode = s.mnemonic
    if opcode == "mul" and s.type in INTEGERS:
        opcode = {"lo": "mul", "hi": "mul_hi", "wide": "mul_wide"}[s.one_of("lo", "hi", "wide")]
    s.expect_operands(3)
    # The shift is 32 bits wide whatever is shifted.
    second = "u32" if opcode in ("shl", "shr") else s.type
    return s.instruction(opcode, [s.slot(0), s.slot(1), s.slot(2, second)], flags=flags, rounding=rounding)


def _multiply_add(s: Statement) -> Instruction:
    if s.mnemonic == "fma" or s.type in FLOATS:
        flags, _ = s.accept("rn", "ftz", types=FLOATS | HALVES)
        return s.instruction("fma", s.slots_of_type(4), flags=flags)
    s.accept("lo", "hi", "wide", types=INTEGERS)
    part = s.one_of("lo", "hi", "wide")
    addend = s.slot(3, _WIDER[s.type] if part == "wide" else s.type)
    opcode = {"lo": "mad", "hi": "mad_hi", "wide": "mad_wide"}[part]
    return s.instruction(opcode, [*s.slots_of_type(3), addend])


def _unary(s: Statement) -> Instruction:
    signed = {"s16", "s32", "s64"}
    types = {
        "neg": signed | FLOATS | HALVES,
        "abs": signed | FLOATS | HALVES,
        "not": _BITS | {"pred"},
        "brev": {"b32", "b64"},
        "clz": {"b32", "b64"},
        "popc": {"b32", "b64"},
    }[s.mnemonic]
    flags, rounding = s.accept("ftz", types=types)
    return s.instruction(s.mnemonic, s.slots_of_type(2), flags=flags, rounding=rounding)


def _function(s: Statement) -> Instruction:
    types = {"f32", "f64"} if s.mnemonic in ("sqrt", "rsqrt", "rcp") else {"f32"}
    allowed = {"rn", "ftz", "approx"}
    flags, rounding = s.accept(*allowed, types=types)
    return s.instruction(s.mnemonic, s.slots_of_type(2), flags=flags, rounding=rounding)


def _move(s: Statement) -> Instruction:
    s.accept(types=_BITS | INTEGERS | {"f32", "f64", "pred"})
    result, source = s.operands
    if result.startswith("{"):
        parts = s.symbols.slots(result, "b32")
        return s.instruction("unpack", [*parts, s.slot(1)], elements=len(parts))
    if source.startswith("{"):
        parts = s.symbols.slots(source, {"b64": "b32", "b32": "b16", "b16": "b8"}.get(s.type))
        return s.instruction("pack", [s.slot(0), *parts], elements=len(parts))
    if match := re.fullmatch(r"([\w$]+)\+(\d+)", source):
        address = s.symbols.constant(s.symbols.address_of(match[1]) + int(match[2]))
        return s.instruction("mov", [s.slot(0), address])
    return s.instruction("mov", s.slots_of_type(2))


def _select(s: Statement) -> Instruction:
    s.accept(types=_BITS | INTEGERS | {"f32", "f64"})
    return s.instruction("selp", [*s.slots_of_type(3), s.slot(3, "pred")])


def _set_predicate(s: Statement) -> Instruction:
    comparison = s.one_of(*COMPARISONS[1:])
    combinations = [name for name in COMBINATIONS[1:] if name in s.modifiers]
    flags, _ = s.accept("ftz", comparison, *combinations, types=_BITS | INTEGERS | {"f16", "bf16", "f32", "f64"})
    slots = [*s.pair_of_results(), s.slot(1), s.slot(2)]
    variant = 0
    if combinations:
        variant = COMBINATIONS.index(combinations[0])
        slots.append(s.symbols.slot(s.operands[3].lstrip("! "), "pred"))
        flags |= {"negate_predicate"} if s.operands[3].startswith("!") else set()
    return s.instruction("setp", slots, comparison=comparison, flags=flags, variant=variant)


def _convert(s: Statement) -> Instruction:
    result, source = s.types[0], s.types[-1]
    if result in ("f16x2", "bf16x2"):
        _, rounding = s.accept("rn", "rz", types={"f16x2", "bf16x2", "f32"})
        slots = [s.slot(0), s.slot(1, "f32"), s.slot(2, "f32")]
        return s.instruction("cvt_pack", slots, type=result, source_type="f32", rounding=rounding)
    flags, rounding = s.accept(
        "rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat",
        types=INTEGERS | {"u8", "s8", "f16", "bf16", "f32", "f64", "tf32"},
    )  # fmt: skip
    if len(s.types) != 2 or ("sat" in flags and result not in INTEGERS | {"u8", "s8"}):
        raise PtxError("form of cvt")
    slots = [s.slot(0, result), s.slot(1, source)]
    return s.instruction("cvt", slots, type=result, source_type=source, flags=flags, rounding=rounding)


def _convert_address(s: Statement) -> Instruction:
    space = s.one_of(*SPACES[1:], "shared::cta")
    s.accept("to", space, types={"u32", "u64"})
    flags = frozenset({"to_space"} if "to" in s.modifiers else ())
    return s.instruction("cvta", s.slots_of_type(2), space=space.partition("::")[0], flags=flags)


def _bit_field(s: Statement) -> Instruction:
    """bfe and bfi: position and length are 32 bits wide."""
    s.accept(types=INTEGERS | {"b32", "b64"})
    values = {"bfe": 2, "bfi": 3}[s.mnemonic]
    fields = [s.slot(index, "u32") for index in range(values, values + 2)]
    return s.instruction(s.mnemonic, [*s.slots_of_type(values), *fields])


def _find_bit(s: Statement) -> Instruction:
    s.accept("shiftamt", types=INTEGERS)
    flags = frozenset({"shift_amount"} if "shiftamt" in s.modifiers else ())
    return s.instruction("bfind", [s.slot(0), s.slot(1)], flags=flags)


def _logic_of_three(s: Statement) -> Instruction:
    s.accept(types={"b32"})
    s.expect_operands(5)
    return s.instruction("lop3", s.slots_of_type(4), immediate=s.number(4))


def _funnel_shift(s: Statement) -> Instruction:
    s.accept("l", "r", "wrap", "clamp", types={"b32"})
    flags = {name for word, name in (("r", "right"), ("wrap", "wrap")) if word in s.modifiers}
    return s.instruction("shf", s.slots_of_type(4), flags=frozenset(flags))


def _permute(s: Statement) -> Instruction:
    s.accept(types={"b32"})
    return s.instruction("prmt", s.slots_of_type(4))


def _branch(s: Statement) -> Instruction:
    s.accept("uni")
    return s.instruction("bra", [], flags=frozenset({"uniform"} if "uni" in s.modifiers else ()))


def _indexed_branch(s: Statement) -> Instruction:
    s.accept("idx", "uni")
    return s.instruction("brx", [s.slot(0, "u32")])


def _end(s: Statement) -> Instruction:
    s.accept("uni")
    return s.instruction("ret", [])


def _trap(s: Statement) -> Instruction:
    s.accept()
    return s.instruction("trap", [])


def _sleep(s: Statement) -> Instruction:
    s.accept(types={"u32"})
    return s.instruction("nop", [])


_DECODERS = {
    **dict.fromkeys(words("add sub mul div min max rem and or xor shl shr copysign"), _arithmetic),
    **dict.fromkeys(words("mad fma"), _multiply_add),
    **dict.fromkeys(words("neg abs not brev clz popc"), _unary),
    **dict.fromkeys(words("sqrt rsqrt rcp ex2 lg2 sin cos tanh"), _function),
    **dict.fromkeys(("bfe", "bfi"), _bit_field),
    "mov": _move,
    "selp": _select,
    "setp": _set_predicate,
    "cvt": _convert,
    "cvta": _convert_address,
    "bfind": _find_bit,
    "lop3": _logic_of_three,
    "shf": _funnel_shift,
    "prmt": _permute,
    "bra": _branch,
    "brx": _indexed_branch,
    "ret": _end,
    "exit": _end,
    "trap": _trap,
    "nanosleep": _sleep,
    **decode_memory.DECODERS,
    **decode_warp.DECODERS,
    **decode_matrix.DECODERS,
}
