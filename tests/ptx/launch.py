"""The package's host code on CPU tensors, with each Triton launch compiled for a GPU and executed by the simulator.

    with simulated(Machine("sm_80")) as run:
        nt_xent.nt_xent(z1, z2, ...)             # a kernel's function
        functional.nt_xent(z1, z2, ...)          # or, on backend "triton", the loss itself

The launcher, the tile table, the alignment and the strides are those of the device. Whatever the simulator reports of
a launch (an access out of bounds, uninitialised, in flight or racing, lanes that store different values) is an
AssertionError there.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

from torch import Tensor
from triton.runtime.jit import JITFunction

from ssl_fast import kernels
from ssl_fast.kernels.tuning import ahead_of_time, table
from ssl_fast.operators import backends, loading

from .compile import compile_to_ptx, parameters, span, union
from .memory import poisoned_allocations
from .simulator import load, run

# Of warps in a launch: a mutation may make a loop endless.
MOST_INSTRUCTIONS = 10**8


class Machine(NamedTuple):
    """The device, and what it leaves open: no result may depend on that by more than rounding.

    seed to vary_winning_lane: as simulator.run has them. slots, chunk_elements: in place of the package's, so that
    small inputs take several groups of tiles and several chunks of wide rows.
    """

    device: str = "sm_80"
    seed: int = 0
    interleaved: int = 1
    contract: bool = False
    inexact_approximations: bool = False
    vary_winning_lane: bool = False
    slots: int | None = None
    chunk_elements: int | None = None

    @property
    def how(self) -> dict[str, int | bool]:
        """The keyword arguments of simulator.run."""
        names = ("seed", "interleaved", "contract", "inexact_approximations", "vary_winning_lane")
        return {name: getattr(self, name) for name in names} | {"limit": MOST_INSTRUCTIONS}


USUAL = Machine()


class Reported(AssertionError):
    """The simulator reported something about a launch: the first reports, one a line."""


@dataclass
class Run:
    """Executes launches.

    change: makes another text of a kernel's PTX, for mutations. launched: is called after each launch with the kernel's
    name and the warp instructions that were executed. reached: tensors that a kernel finds by addresses in a table, and
    not in its arguments.
    """

    machine: Machine
    change: Callable[[str], str]
    launched: Callable[[str, int], None]
    reached: tuple[Tensor, ...] = ()

    def launch(self, kernel: JITFunction, grid: tuple, arguments: tuple, options: dict) -> None:
        """Compiles and executes one `kernel[grid](*arguments, **options)`."""
        compiled = compile_to_ptx(kernel, arguments, grid, options, self.machine.device)
        compiled = replace(compiled, ptx=self.change(compiled.ptx))
        packed, regions = parameters(compiled, kernel, arguments, options)
        memory = union([*regions, *(span(x) for x in self.reached)])
        result = run(load(compiled.ptx), packed, memory, grid, shared=compiled.shared_bytes, **self.machine.how)
        self.launched(compiled.name, result.instructions)
        if result.reports:
            raise Reported("\n".join(map(str, result.reports[:8])))


class _Launcher:
    def __init__(self, run: Run, kernel: JITFunction):
        self.run, self.kernel = run, kernel

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return lambda *arguments, **options: self.run.launch(self.kernel, grid, arguments, options)


def _unchanged(text: str) -> str:
    return text


def _uncounted(kernel: str, instructions: int) -> None:
    pass


@contextmanager
def simulated(
    machine: Machine = USUAL,
    change: Callable[[str], str] = _unchanged,
    launched: Callable[[str, int], None] = _uncounted,
) -> Iterator[Run]:
    """Inside, the kernels' functions and the operators of backend "triton" take CPU tensors and are simulated."""
    what = Run(machine, change, launched)
    with ExitStack() as stack:

        def patch(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        patch(table, "architecture", lambda device: machine.device)
        table.processors.cache_clear()
        stack.callback(table.processors.cache_clear)
        if machine.slots is not None:
            patch(table, "slots", lambda device: machine.slots)
        if machine.chunk_elements is not None:
            patch(table, "CHUNK_ELEMENTS", machine.chunk_elements)
        for module in ahead_of_time.MODULES:
            for name, kernel in list(vars(module).items()):
                if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                    patch(module, name, _Launcher(what, kernel))
        stack.enter_context(poisoned_allocations())
        stack.enter_context(_on_cpu_tensors())
        yield what


@contextmanager
def _on_cpu_tensors() -> Iterator[None]:
    """The operators' CPU implementation is the Triton kernels' host code."""
    if loading.extension is None:  # there are no operators then, and the kernels' functions are called themselves
        yield
        return
    kernels.register("CPU")
    try:
        # Which backend runs is remembered: outside there is another answer.
        with mock.patch.dict(backends._chosen, clear=True):
            yield
    finally:
        kernels.registered.pop("CPU")._destroy()
