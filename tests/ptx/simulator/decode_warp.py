"""Barriers and what the lanes of a warp exchange."""

from __future__ import annotations

from .instructions import ATOMICS, SHUFFLES, VOTES
from .program import Instruction
from .statement import Statement


def _barrier(s: Statement) -> Instruction:
    if "warp" in s.modifiers:
        s.accept("warp", "sync")
        return s.instruction("bar_warp", [s.slot(0, "b32")])
    s.accept("sync", "aligned", "cta")
    s.one_of("sync")
    s.expect_operands(1, 2)
    # The number of threads, where it is given, must be all of the block's: the interpreter looks.
    return s.instruction("bar", [s.slot(index, "u32") for index in range(len(s.operands))])


def _shuffle(s: Statement) -> Instruction:
    mode = s.one_of(*SHUFFLES)
    s.accept("sync", mode, types={"b32"})
    s.one_of("sync")
    sources = [s.slot(index, "b32") for index in range(1, 5)]
    return s.instruction("shfl", [*s.pair_of_results(), *sources], variant=SHUFFLES.index(mode))


def _vote(s: Statement) -> Instruction:
    mode = s.one_of(*VOTES)
    s.accept("sync", mode, types={"pred", "b32"})
    s.one_of("sync")
    source = s.operands[1]
    flags = frozenset({"negate_predicate"} if source.startswith("!") else ())
    slots = [s.slot(0), s.symbols.slot(source.lstrip("! "), "pred"), s.slot(2, "b32")]
    return s.instruction("vote", slots, variant=VOTES.index(mode), flags=flags)


def _active_mask(s: Statement) -> Instruction:
    s.accept(types={"b32"})
    return s.instruction("activemask", [s.slot(0)])


def _reduce(s: Statement) -> Instruction:
    kind = s.one_of("add", "min", "max", "and", "or", "xor")
    s.accept("sync", kind, types={"b32", "u32", "s32"})
    slots = [s.slot(0), s.slot(1, "b32"), s.slot(2, "b32")]
    return s.instruction("redux", slots, variant=ATOMICS.index(kind))


def _elect(s: Statement) -> Instruction:
    s.accept("sync")
    return s.instruction("elect", [*s.pair_of_results(), s.slot(1, "b32")])


DECODERS = {
    "bar": _barrier,
    "barrier": _barrier,
    "shfl": _shuffle,
    "vote": _vote,
    "activemask": _active_mask,
    "redux": _reduce,
    "elect": _elect,
}
