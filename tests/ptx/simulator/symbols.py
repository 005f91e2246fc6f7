"""What the names in a kernel stand for: registers, variables, parameters, literals; each operand becomes a slot."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .instructions import BYTES, SPECIAL_REGISTERS
from .program import Program, PtxError

SHARED_BASE = 1024  # shared memory starts here, so that null is no address; a multiple of the swizzles' 1024 bytes
CONSTANT_WINDOW = 0x0C << 56  # where generic and global addresses of module variables lie (memory.h)
_BITS_64 = (1 << 64) - 1


def literal(text: str) -> int | None:
    """The bits of a literal, two's complement in 64 bits; None if `text` is none."""
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
        return int(text[2:], 16)
    match = re.fullmatch(r"(-?)(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", text)
    if not match:
        return None
    digits = match[2].lower()
    base = 16 if digits.startswith("0x") else 2 if digits.startswith("0b") else 8 if digits.startswith("0") else 10
    number = int(digits, base)
    return (-number if match[1] else number) & _BITS_64


def signed(bits: int) -> int:
    """64 bits read as two's complement."""
    return bits - (1 << 64) if bits >> 63 else bits


def aligned(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`."""
    return -(-offset // alignment) * alignment


@dataclass
class Variable:
    """A variable of a state space and the address that its name stands for."""

    space: str
    address: int


@dataclass
class Scope:
    """Registers and labels declared between two braces."""

    registers: dict[str, int] = field(default_factory=dict)  # name -> slot
    ranges: dict[str, tuple[int, str]] = field(default_factory=dict)  # %r of .reg .b32 %r<7>: 7, "b32"
    labels: dict[str, int] = field(default_factory=dict)  # name -> index of an instruction


class Symbols:
    """The names visible in one kernel, and the slots of its program."""

    def __init__(self, program: Program, module: dict[str, Variable]):
        self.program = program
        self.variables = dict(module)
        self.scopes = [Scope()]

    def declare(self, type: str, name: str) -> None:
        """`.reg .type name` or `.reg .type name<count>`."""
        if match := re.fullmatch(r"(%?[\w$]+)<(\d+)>", name):
            self.scopes[-1].ranges[match[1]] = (int(match[2]), type)
        else:
            self.scopes[-1].registers[name] = self._new_slot(type)

    def constant(self, bits: int) -> int:
        """The slot that holds `bits` in all lanes."""
        bits &= _BITS_64
        if bits not in self.program.constants:
            self.program.constants[bits] = self._new_slot()
        return self.program.constants[bits]

    def slot(self, text: str, type: str | None = None) -> int:
        """The slot of an operand; of a literal the bits that fit `type`. `_`, a result not wanted, is -1."""
        if text == "_":
            return -1
        register = self._register(text)
        if register is not None:
            return register
        if text == "WARP_SZ":
            return self.constant(32)
        bits = literal(text)
        if bits is not None:
            if type == "pred":
                return self.constant(int(bits != 0))
            return self.constant(bits & ((1 << 8 * BYTES[type]) - 1) if type in BYTES else bits)
        return self.constant(self.address_of(text))

    def address_of(self, name: str) -> int:
        """The address of a variable or parameter."""
        if name in self.variables:
            return self.variables[name].address
        if name in self.program.parameters:
            return self.program.parameters[name][0]
        raise PtxError(f"operand {name!r}")

    def slots(self, text: str, type: str | None = None) -> list[int]:
        """Of `{a, b, ...}` or of a single operand."""
        names = text[1:-1].split(",") if text.startswith("{") else [text]
        return [self.slot(name.strip(), type) for name in names]

    def memory(self, text: str, space: str) -> tuple[int, int]:
        """Of `[base+offset]` the slot of the base and the offset in bytes."""
        match = re.fullmatch(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+))?\s*\]", text)
        offset = literal(match[2]) if match and match[2] else 0
        if not match or offset is None:
            raise PtxError(f"address {text}")
        variable = self.variables.get(match[1])
        if variable and variable.space == "shared" and space != "shared":
            raise PtxError(f"address {text} of shared memory in an access to {space} memory")
        return self.slot(match[1]), signed(offset)

    def _register(self, name: str) -> int | None:
        for scope in reversed(self.scopes):
            if name in scope.registers:
                return scope.registers[name]
        if name.startswith("%") and name[1:] in SPECIAL_REGISTERS:
            slot = self.scopes[0].registers[name] = self._new_slot()
            self.program.special[slot] = SPECIAL_REGISTERS.index(name[1:])
            return slot
        # A register of a range gets its slot when it is first named.
        if match := re.fullmatch(r"(%?[A-Za-z_$]+)(\d+)", name):
            for scope in reversed(self.scopes):
                count, type = scope.ranges.get(match[1], (0, ""))
                if int(match[2]) < count:
                    slot = scope.registers[name] = self._new_slot(type)
                    return slot
        return None

    def _new_slot(self, type: str = "b64") -> int:
        slot = self.program.slots
        self.program.slots += 1
        if type == "pred":
            self.program.predicates.append(slot)
        return slot
