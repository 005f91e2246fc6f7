"""Runs programs: the front end of the compiled interpreter."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np

from . import build
from .instructions import words
from .parser import parse
from .program import Program, PtxError
from .reports import UNKNOWN, Fault, Place, Report, ReportKind, Result
from .symbols import aligned

_KINDS = list(ReportKind)
_MOST_REPORTS = 1024  # places; a broken kernel has a few
_REPORT = np.dtype(
    [(name, np.int32) for name in ("kind", "pc", "other_pc")]
    + [("_", np.int32), ("address", np.uint64)]
    + [(name, np.int32) for name in ("thread", "other_thread", "block")]
    + [("__", np.int32), ("count", np.int64)]
)
_ARRAYS = words("""
    instructions operands parameters constants regions constant_slots constant_values special_slots special_registers
    predicate_slots counts reports message
""")
_LENGTHS = words("""
    parameter_bytes constant_bytes region_count constant_slot_count special_count predicate_count
    report_capacity message_bytes
""")
_NUMBERS = words("""
    shared_bytes local_bytes seed interleaved races inexact_approximations vary_winning_lane report_count fault_pc
""")


class _Arguments(ctypes.Structure):
    """struct Arguments of simulate.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in _LENGTHS),
        ("limit", ctypes.c_uint64),
        ("slots", ctypes.c_int32),
        ("threads", ctypes.c_int32 * 3),
        ("grid", ctypes.c_int32 * 3),
        *((name, ctypes.c_int32) for name in _NUMBERS),
    ]


def load(text: str, name: str | None = None) -> Program:
    """The kernel `name` of a PTX module, the first without a name. The same text is parsed once.

    Raises:
        PtxError: with line and text, for what the simulator does not implement.
    """
    programs = _parsed(text)
    if not programs:
        raise PtxError("no kernel in the text")
    return programs[name] if name else next(iter(programs.values()))


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> dict[str, Program]:
    return parse(text)


def run(
    program: Program,
    parameters: bytes,
    regions: Sequence[tuple[int, int]],
    grid: Sequence[int],
    *,
    threads: Sequence[int] | None = None,
    shared: int = 0,
    seed: int = 0,
    interleaved: int = 1,
    races: bool = True,
    contract: bool = False,
    inexact_approximations: bool = False,
    vary_winning_lane: bool = False,
    limit: int = 10**10,
) -> Result:
    """One launch, in place on the memory of `regions`.

    Args:
        program: from `load`.
        parameters: the kernel's parameters as they lie in memory.
        regions: begin and end, addresses of this process, of the buffers that may be accessed.
        grid: blocks along x, y, z.
        threads: of a block along x, y, z; by default what the program says.
        shared: bytes of dynamic shared memory.
        seed: the order of blocks and warps; 0 is their natural one.
        interleaved: blocks that are under way at the same time.
        races: whether races in global memory are looked for; those in shared memory always are.
        contract: mul and add without a rounding modifier become fma, as ptxas may have it.
        inexact_approximations: .approx and .full functions are up to 2 units in the last place (sqrt: 1) off.
        vary_winning_lane: of lanes that store to one place in one instruction the first wins in about half of
            the instructions; otherwise the last does.
        limit: warp instructions after which the launch is taken for endless.

    Raises:
        Fault: an access out of bounds or misaligned, a barrier in divergent code or that not all warps reach,
            a predicate that was never written, lanes missing, trap, more instructions than `limit`.
    """
    program = program.contracted if contract else program
    threads = threads or program.threads
    if threads is None:
        raise ValueError(f"{program.name} does not say how many threads a block has")
    if len(parameters) != program.parameter_bytes:
        raise ValueError(f"{program.name} takes {program.parameter_bytes} bytes of parameters, not {len(parameters)}")
    arrays = _arrays(program, parameters, regions)
    arguments = _Arguments(
        limit=limit,
        threads=_three(threads),
        grid=_three(grid),
        shared_bytes=aligned(program.static_shared_bytes, 16) + shared,
        seed=seed,
        interleaved=interleaved,
        races=races,
        inexact_approximations=inexact_approximations,
        vary_winning_lane=vary_winning_lane,
        fault_pc=-1,
        **_of_program(program),
        parameter_bytes=len(parameters),
        region_count=len(regions),
        report_capacity=_MOST_REPORTS,
        message_bytes=arrays["message"].nbytes,
        **{name: array.ctypes.data for name, array in arrays.items()},
    )
    faulted = build.library().ptx_simulate(ctypes.byref(arguments))
    reports = [_report(program, row) for row in arrays["reports"][: arguments.report_count]]
    if faulted:
        message = arrays["message"].tobytes().split(b"\0")[0].decode()
        raise Fault(f"{program.name}: {message}", _place(program, arguments.fault_pc), reports)
    return Result(program, reports, arrays["counts"])


def _of_program(program: Program) -> dict[str, int]:
    return {
        "constant_bytes": len(program.constant_bytes),
        "constant_slot_count": len(program.constants),
        "special_count": len(program.special),
        "predicate_count": len(program.predicates),
        "slots": program.slots,
        "local_bytes": aligned(program.local_bytes, 16),
    }


def _arrays(program: Program, parameters: bytes, regions: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """By the names of _ARRAYS; none is empty, so that each has an address."""

    def array(values, dtype) -> np.ndarray:
        return np.array(list(values) or [0], dtype)

    return {
        "instructions": program.rows,
        "operands": program.operands,
        "parameters": np.frombuffer(parameters or b"\0", np.uint8),
        "constants": np.frombuffer(program.constant_bytes or b"\0", np.uint8),
        "regions": array((address for region in regions for address in region), np.uint64),
        "constant_slots": array(program.constants.values(), np.int32),
        "constant_values": array(program.constants.keys(), np.uint64),
        "special_slots": array(program.special.keys(), np.int32),
        "special_registers": array(program.special.values(), np.int32),
        "predicate_slots": array(program.predicates, np.int32),
        "counts": np.zeros(len(program.instructions), np.uint64),
        "reports": np.zeros(_MOST_REPORTS, _REPORT),
        "message": np.zeros(512, np.uint8),
    }


def _three(numbers: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * 3)(*numbers, *[1] * (3 - len(numbers)))


def _place(program: Program, pc: int) -> Place:
    if pc < 0:
        return UNKNOWN
    instruction = program.instructions[pc]
    return Place(instruction.text, instruction.line, instruction.source)


def _report(program: Program, row: np.void) -> Report:
    return Report(
        kind=_KINDS[row["kind"]],
        program=program.name,
        place=_place(program, row["pc"]),
        other=_place(program, row["other_pc"]),
        address=int(row["address"]),
        threads=(int(row["thread"]), int(row["other_thread"])),
        block=int(row["block"]),
        count=int(row["count"]),
    )
