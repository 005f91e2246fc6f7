"""A decoded PTX kernel, and its form as arrays for the interpreter."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .instructions import COMPARISONS, FIELDS_32, FIELDS_64, FLAG_BITS, OPCODES, ROUNDINGS, SPACES, TYPES


class PtxError(Exception):
    """The text holds what the simulator does not implement."""


@dataclass(slots=True)
class Instruction:
    """One instruction. The fields up to `destination_offset` are explained in instructions.FIELDS_32."""

    opcode: str
    type: str = "none"
    source_type: str = "none"
    rounding: str = "none"
    comparison: str = "none"
    flags: frozenset[str] = frozenset()
    space: str = "generic"
    variant: int = 0
    elements: int = 1
    predicate: int = -1
    negated: bool = False
    target: int = -1
    reconvergence: int = -1
    rows: int = 0
    columns: int = 0
    depth: int = 0
    a_registers: int = 0
    b_registers: int = 0
    immediate: int = 0
    destination_offset: int = 0
    operands: list[int] = field(default_factory=list)  # slots, -1 for `_`; of brx after the first its targets
    text: str = ""
    line: int = 0  # of the PTX
    source: str = "?"  # file:line of the source

    @property
    def name(self) -> str:
        """Mnemonic and modifiers, without the guard."""
        words = self.text.split()
        return words[1 if words[0].startswith("@") else 0].rstrip(";") if words else self.opcode

    @property
    def leaves(self) -> bool:
        """Whether control may go elsewhere than to the next instruction."""
        return self.opcode in ("bra", "brx", "ret", "trap")

    @property
    def conditional(self) -> bool:
        """Whether lanes may go on with the next instruction too."""
        return self.predicate >= 0


_ROW = np.dtype([(name, np.int32) for name in FIELDS_32] + [(name, np.int64) for name in FIELDS_64])
_TABLES = {
    "opcode": OPCODES,
    "type": TYPES,
    "source_type": TYPES,
    "rounding": ROUNDINGS,
    "comparison": COMPARISONS,
    "space": SPACES,
}
_NUMBERS = {name: {word: index for index, word in enumerate(table)} for name, table in _TABLES.items()}


@dataclass
class Program:
    """A kernel. A slot is 32 lanes of 64 bits: of a register, of a constant, of a special register."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    slots: int = 0
    predicates: list[int] = field(default_factory=list)  # slots
    constants: dict[int, int] = field(default_factory=dict)  # value -> slot
    special: dict[int, int] = field(default_factory=dict)  # slot -> index into SPECIAL_REGISTERS
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> offset and size in bytes
    parameter_bytes: int = 0
    static_shared_bytes: int = 0
    local_bytes: int = 0  # a thread
    constant_bytes: bytes = b""  # the module's .const and initialised .global variables
    threads: tuple[int, int, int] | None = None  # of a block, where the program says

    @cached_property
    def rows(self) -> np.ndarray:
        """(instructions,) of the C++ struct Instruction."""
        rows = np.zeros(len(self.instructions), _ROW)
        first = np.cumsum([0] + [len(x.operands) for x in self.instructions])
        for name in (*FIELDS_32, *FIELDS_64):
            if name == "first_operand":
                rows[name] = first[:-1]
            elif name == "operand_count":
                rows[name] = np.diff(first)
            elif name == "flags":
                rows[name] = [sum(FLAG_BITS[flag] for flag in x.flags) for x in self.instructions]
            elif name in _NUMBERS:
                numbers = _NUMBERS[name]
                rows[name] = [numbers[getattr(x, name)] for x in self.instructions]
            else:
                rows[name] = [getattr(x, name) for x in self.instructions]
        return rows

    @cached_property
    def operands(self) -> np.ndarray:
        """All instructions' operands, int32."""
        return np.array([slot for x in self.instructions for slot in x.operands] or [0], np.int32)

    @cached_property
    def contracted(self) -> Program:
        """The same kernel with products and sums fused as ptxas may."""
        from .contraction import contract

        return contract(self)
