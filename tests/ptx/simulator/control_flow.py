"""Where lanes that part at a branch meet again: its immediate post-dominator, as NVIDIA's compiler places it."""

from __future__ import annotations

from .program import Instruction


def block_starts(instructions: list[Instruction]) -> list[int]:
    """Indices at which basic blocks begin, ascending."""
    starts = {0}
    for index, instruction in enumerate(instructions):
        if instruction.leaves:
            starts.update([*_targets(instruction), index + 1])
    return sorted(start for start in starts if start < len(instructions))


def _targets(instruction: Instruction) -> list[int]:
    if instruction.opcode == "bra":
        return [instruction.target]
    return instruction.operands[1:] if instruction.opcode == "brx" else []


def set_reconvergence(instructions: list[Instruction]) -> None:
    """Fills `reconvergence` of every branch whose lanes may part; it is past the end if they meet nowhere."""
    starts = block_starts(instructions)
    last = [start - 1 for start in starts[1:]] + [len(instructions) - 1]
    dominators = _post_dominators(_successors(instructions, starts, last))
    for block, index in enumerate(last):
        branch = instructions[index]
        if branch.opcode == "brx" or (branch.opcode == "bra" and branch.conditional):
            strict = dominators[block] & ~(1 << block)
            # Post-dominators of a block form a chain: the nearest is post-dominated by all the others.
            nearest = (x for x in range(len(starts)) if strict >> x & 1 and dominators[x] == strict)
            meeting = next(nearest, None)
            branch.reconvergence = len(instructions) if meeting is None else starts[meeting]


def _successors(instructions: list[Instruction], starts: list[int], last: list[int]) -> list[list[int]]:
    """Of every block the blocks that may follow; the number len(starts) is the exit."""
    block_at = {start: block for block, start in enumerate(starts)}
    successors = []
    for index in last:
        instruction = instructions[index]
        after = [block_at[target] for target in _targets(instruction)]
        if instruction.opcode in ("ret", "trap"):
            after.append(len(starts))
        if not instruction.leaves or instruction.conditional:
            after.append(block_at.get(index + 1, len(starts)))
        successors.append(after)
    return successors


def _post_dominators(successors: list[list[int]]) -> list[int]:
    """Of every block, the exit last, the set of its post-dominators as bits, itself among them."""
    exit_block = len(successors)
    everything = (1 << exit_block + 1) - 1
    dominators = [everything] * exit_block + [1 << exit_block]
    changed = True
    while changed:
        changed = False
        for block in reversed(range(exit_block)):
            common = everything
            for after in successors[block]:
                common &= dominators[after]
            common |= 1 << block
            if common != dominators[block]:
                dominators[block], changed = common, True
    return dominators
