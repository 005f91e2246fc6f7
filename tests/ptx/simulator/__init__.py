"""A functional simulator of PTX, NVIDIA's virtual instruction set, for programs whose buffers are CPU memory.

It computes what the PTX ISA says, 32 lanes at a time, with warps and blocks in any order, and looks at every
access: bounds, alignment, uninitialised shared memory, races, copies still in flight. Time is not modelled.

    program = load(ptx_text)
    result = run(program, parameters, regions, grid, shared=compiled_shared_bytes)
    assert not result.reports

`Fault` is raised where a GPU would stop or hang, or would go on with an undefined value; `PtxError` where the
text holds an instruction or a modifier that is not implemented here.
"""

from .program import Program, PtxError
from .reports import Fault, Report, ReportKind, Result
from .run import load, run

__all__ = ["Fault", "Program", "PtxError", "Report", "ReportKind", "Result", "load", "run"]
