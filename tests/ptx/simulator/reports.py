"""What a simulation finds: reports of suspicious accesses, faults, counts of instructions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from .program import Program


class ReportKind(Enum):
    """What is wrong with an access. The order is that of the C++ enumeration, which is made of these names.

    A barrier is bar.sync, or bar.warp.sync between lanes of a warp; "another warp" is one of the same block.
    """

    UNINITIALISED = "read of shared memory that nothing was written to"
    READ_AFTER_WRITE = "read of shared memory that another warp wrote, no barrier between"
    WRITE_AFTER_READ = "write to shared memory that another warp read, no barrier between"
    WRITE_AFTER_WRITE = "write to shared memory that another warp wrote, no barrier between"
    IN_FLIGHT = "access to shared memory while a cp.async to it is in flight"
    LANE_READ_AFTER_WRITE = "read of shared memory that another lane wrote, no bar.warp.sync between"
    LANE_WRITE_AFTER_READ = "write to shared memory that another lane read, no bar.warp.sync between"
    LANE_WRITE_AFTER_WRITE = "write to shared memory that another lane wrote, no bar.warp.sync between"
    GLOBAL_BETWEEN_BLOCKS = "global memory written by one block and read or written by another"
    GLOBAL_BETWEEN_WARPS = "global memory written by one warp and read or written by another, no barrier between"
    LANES_DISAGREE = "lanes of one store write different values to one place"
    NEVER_WAITED = "a cp.async that nothing waited for"
    UNFENCED_PROXY = "wgmma reads shared memory written without fence.proxy.async between"


class Place(NamedTuple):
    """An instruction of a program; text is "(unknown)" for the other access of some global races."""

    text: str
    line: int  # of the PTX
    source: str  # file:line of the source, as the PTX's .loc says

    def __str__(self) -> str:
        return f"{self.text} [PTX line {self.line}, {self.source}]"


UNKNOWN = Place("(unknown)", 0, "?")


@dataclass(frozen=True)
class Report:
    """One kind of finding at one pair of instructions; the numbers are of the first time it was found."""

    kind: ReportKind
    program: str
    place: Place  # the access that was found wrong
    other: Place  # the earlier access that it collides with
    address: int  # in shared memory an offset
    threads: tuple[int, int]  # of the two accesses, within their blocks; -1: none
    block: int
    count: int  # bytes times executions

    def __str__(self) -> str:
        where = f"threads {self.threads[0]} and {self.threads[1]} of block {self.block}, address {self.address:#x}"
        return f"{self.program}: {self.kind.value}: {self.place} / {self.other}; {where}; {self.count} times"


class Fault(Exception):
    """The program did what stops or hangs a GPU, or what has no defined result.

    place: the instruction, or None. reports: what was found before.
    """

    def __init__(self, message: str, place: Place | None = None, reports: list[Report] | None = None):
        super().__init__(f"{message}: {place}" if place else message)
        self.place, self.reports = place, reports or []


@dataclass(frozen=True)
class Result:
    """What one launch did. counts: (instructions of the program,), how often a warp executed each."""

    program: Program
    reports: list[Report]
    counts: np.ndarray

    @property
    def instructions(self) -> int:
        """Warp instructions executed."""
        return int(self.counts.sum())

    @property
    def histogram(self) -> Counter[str]:
        """Warp instructions executed, by name with modifiers: "ld.global.b32", "mma.sync.aligned..."."""
        total: Counter[str] = Counter()
        for instruction, count in zip(self.program.instructions, self.counts, strict=True):
            if count:
                total[instruction.name] += int(count)
        return total
