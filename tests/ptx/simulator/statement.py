"""One instruction taken apart, with the means to read its modifiers and operands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .instructions import ROUNDINGS, TYPES
from .program import Instruction, PtxError
from .symbols import Symbols, literal, signed

INTEGERS = {"u16", "s16", "u32", "s32", "u64", "s64"}
FLOATS = {"f16", "bf16", "f32", "f64"}
HALVES = {"f16", "bf16", "f16x2", "bf16x2"}
_FLAGS = {"ftz": "ftz", "sat": "sat", "NaN": "nan", "approx": "approx", "full": "approx"}


def split_operands(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if text.strip() else []


@dataclass
class Statement:
    """`mnemonic.modifiers operands`."""

    mnemonic: str
    modifiers: list[str]
    operands: list[str]
    symbols: Symbols

    @property
    def types(self) -> list[str]:
        return [name for name in self.modifiers if name in TYPES]

    @property
    def type(self) -> str:
        """The last of the types, "none" without one."""
        return self.types[-1] if self.types else "none"

    def accept(self, *modifiers: str, types: Iterable[str] = ()) -> tuple[frozenset[str], str]:
        """Flags and rounding of the statement; raises for a modifier or type that is not among those given."""
        flags, rounding = set(), "none"
        for name in self.modifiers:
            if name not in (types if name in TYPES else modifiers):
                raise PtxError(f"modifier .{name}")
            if name in ROUNDINGS:
                rounding = name
            elif name in _FLAGS:
                flags.add(_FLAGS[name])
        if types and not self.types:
            raise PtxError("no type")
        return frozenset(flags), rounding

    def one_of(self, *modifiers: str) -> str:
        """The first modifier that is one of those given."""
        found = next((name for name in self.modifiers if name in modifiers), None)
        if found is None:
            raise PtxError(f"none of the modifiers {', '.join(modifiers)}")
        return found

    def expect_operands(self, *counts: int) -> None:
        if len(self.operands) not in counts:
            raise PtxError(f"{len(self.operands)} operands")

    def slot(self, index: int, type: str | None = None) -> int:
        """Of an operand; a literal is cut to `type`, by default the statement's."""
        return self.symbols.slot(self.operands[index], type or self.type)

    def slots_of_type(self, count: int) -> list[int]:
        """Of the first `count` operands."""
        return [self.slot(index) for index in range(count)]

    def pair_of_results(self) -> list[int]:
        """The first operand, `d|p` or `d`, as two slots; -1 for a result that is not written."""
        slots = [self.symbols.slot(name.strip()) for name in self.operands[0].split("|")]
        return [*slots, *[-1] * (2 - len(slots))]

    def number(self, index: int) -> int:
        """An operand that must be a literal."""
        bits = literal(self.operands[index])
        if bits is None:
            raise PtxError(f"{self.operands[index]} is no literal")
        return signed(bits)

    def instruction(self, opcode: str, operands: list[int], **fields) -> Instruction:
        return Instruction(opcode, operands=operands, **{"type": self.type, **fields})
