"""Products and sums fused into fma, as ptxas may do with `mul` and `add` that carry no rounding modifier.

PTX ISA, "Floating-point instructions": an instruction without .rn may be contracted. ptxas does so by default,
after Triton and nvcc have written the PTX, so a device may round once where the text rounds twice.
"""

from __future__ import annotations

import dataclasses

from .control_flow import block_starts
from .program import Instruction, Program

_SEVERAL_RESULTS = {"unpack", "setp", "ld", "ldmatrix", "mma", "wgmma", "shfl", "elect"}
_NO_RESULT = {"st", "bra", "brx", "bar", "bar_warp", "cp_async", "stmatrix"}


def contract(program: Program) -> Program:
    """A copy in which each sum takes in a product of the same basic block; a product stays for its other uses."""
    instructions, starts = [], set(block_starts(program.instructions))
    products: dict[int, Instruction] = {}  # slot -> the multiplication whose result it still holds
    for index, instruction in enumerate(program.instructions):
        if index in starts:
            products = {}
        instructions.append(_fused(instruction, products))
        written = _written(instruction)
        products = {
            slot: product for slot, product in products.items() if written.isdisjoint([slot, *product.operands[1:]])
        }
        if instruction.opcode == "mul" and _may_fuse(instruction) and written.isdisjoint(instruction.operands[1:]):
            products[instruction.operands[0]] = instruction
    return dataclasses.replace(program, instructions=instructions)


def _may_fuse(instruction: Instruction) -> bool:
    return instruction.type in ("f32", "f64") and instruction.rounding == "none" and instruction.predicate < 0


def _written(instruction: Instruction) -> set[int]:
    if instruction.opcode in _NO_RESULT:
        return set()
    # Of instructions with several results all operands are taken for written: at worst a fusion is missed.
    return set(instruction.operands if instruction.opcode in _SEVERAL_RESULTS else instruction.operands[:1])


def _fused(instruction: Instruction, products: dict[int, Instruction]) -> Instruction:
    if instruction.opcode not in ("add", "sub") or not _may_fuse(instruction):
        return instruction
    result, left, right = instruction.operands
    for slot, other, negated in ((left, right, "negate_addend"), (right, left, "negate_product")):
        product = products.get(slot)
        if product and (product.type, product.flags) == (instruction.type, instruction.flags):
            flags = instruction.flags | ({negated} if instruction.opcode == "sub" else set())
            operands = [result, *product.operands[1:], other]
            return dataclasses.replace(instruction, opcode="fma", flags=flags, operands=operands)
    return instruction
