"""A GPU that is not there: fake tensors on "cuda" go through the real host code, and what it does is written down.

FakeTensorMode gives tensors without data, so reading a value is impossible and every copy is an operator call that a
dispatch mode sees. Our operators run their Triton launchers (kernels/*.py), whose launches are recorded in place of
being run, and what they return is compared with the fake kernels that torch.compile is given
(ssl_fast/operators/fake_kernels.py).
"""

from __future__ import annotations

import importlib
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ssl_fast
from ssl_fast import kernels
from ssl_fast.operators import loading

ROOT = Path(__file__).resolve().parents[2]
# As torch gives them for an H100; gcnArchName is the marketing name in builds for CUDA.
H100 = {
    "name": "NVIDIA H100 80GB HBM3",
    "gcnArchName": "NVIDIA H100 80GB HBM3",
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "shared_memory_per_multiprocessor": 228 << 10,
    "regs_per_multiprocessor": 65536,
    "warp_size": 32,
    "total_memory": 80 << 30,
}
aten = torch.ops.aten
# These wait for the device: the size of what they return, or a value, is in its memory.
WAITS = {
    aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.unique_dim, aten._unique2,
    aten.unique_consecutive, aten.bincount, aten.argwhere,
}  # fmt: skip
# A 0-D CPU tensor beside tensors of the device is read by the host here, and passed to the kernel as a number.
READS_SCALARS = {
    aten.add, aten.add_, aten.sub, aten.sub_, aten.rsub, aten.mul, aten.mul_, aten.div, aten.div_, aten.pow, aten.eq,
    aten.ne, aten.lt, aten.le, aten.gt, aten.ge, aten.fill_,
}  # fmt: skip
ALLOCATES = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided}
NO_CALLS = {aten.lift_fresh, torch.ops.prim.device}


def why_not() -> str:
    """Why nothing can be shown here; empty where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: the launchers cannot be imported"
    import triton

    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET=1 in this process: its kernels are for CPU tensors"
    if loading.extension is None:
        return f"the compiled extension is missing: {loading.why_missing}"
    try:
        with FakeTensorMode():
            torch.ones(2, device="cuda:1")
    except (AssertionError, RuntimeError) as error:
        return f"torch makes no fake CUDA tensors: {error}"
    return ""


def _place() -> str:
    """The innermost line of ours that is being run."""
    ours = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
        for frame in traceback.extract_stack()
        if frame.filename.startswith((f"{ROOT}/ssl_fast/", f"{ROOT}/kernels/"))
    ]
    return ours[-1] if ours else "autograd"


def _layout(x: Any) -> Any:
    return (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x


class Device(TorchDispatchMode):
    """What was done on the device since `clear`.

    launches: names of our kernels. computed: calls of PyTorch's operators that compute. calls: of all of them, views
    and allocations too. copies: between host and device, or two devices. waits: of the host for the device. wrong:
    launches with arguments on another device than the current one, and outputs unlike the fake kernels'.
    """

    def __init__(self, current: int = 0):
        super().__init__()
        self.current = current  # what torch.cuda.current_device() says
        self.capturing: int | None = None  # the device whose stream is captured in a graph
        self._storages: dict[int, int] = {}
        self.clear()

    def clear(self) -> None:
        self.launches: list[str] = []
        self.computed: list[str] = []
        self.calls: list[str] = []
        self.copies: list[str] = []
        self.waits: list[str] = []
        self.wrong: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in NO_CALLS:
            return func(*args, **kwargs)
        if func.namespace == "ssl_fast":
            return self._run(func, args)
        self.calls.append(str(packet))
        if packet is aten._local_scalar_dense:
            return self._read(func, args[0])
        self._see_waits(func, args, kwargs)
        out = func(*args, **kwargs)
        self._see_copies(packet, args, kwargs, out)
        is_view = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
        if packet not in ALLOCATES and not is_view:
            self.computed.append(str(packet))
        return out

    def _read(self, func: Any, x: Tensor) -> Any:
        """The value of a 0-D tensor. One of the device has none, so any stands for it."""
        if x.device.type != "cpu":
            self.waits.append(f"a value is read in {_place()}")
        try:
            return func(x)
        except DataDependentOutputException:
            return 0.5 if x.dtype.is_floating_point else 1

    def _see_waits(self, func: Any, args: Any, kwargs: Any) -> None:
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        counts = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        on_device = any(isinstance(x, Tensor) and x.device.type != "cpu" for x in tree_leaves((args, kwargs)))
        if on_device and (packet in WAITS or by_mask or counts):
            self.waits.append(f"{packet} in {_place()}")

    def _see_copies(self, packet: Any, args: Any, kwargs: Any, out: Any) -> None:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if packet in READS_SCALARS:
            given = [x for x in given if x.dim() or x.device.type != "cpu"] or given
        devices = {x.device for x in given + made}
        if len(devices) > 1:
            self.copies.append(f"{packet} of {' and '.join(sorted(map(str, devices)))} in {_place()}")

    def _run(self, func: Any, args: Any) -> Any:
        """An operator of ours: its launcher runs, and is held to its fake kernel."""
        name = func._schema.name.removeprefix("ssl_fast::")
        expected = func(*args)
        if name not in kernels.MODULES:
            self.wrong.append(f"{name} has no kernel for the device, in {_place()}")
            return expected
        module = importlib.import_module(f"ssl_fast.kernels.{kernels.MODULES[name]}")
        # The operators that are called without an optional argument get its default.
        rest = [x.default_value for x in func._schema.arguments[len(args) :]]
        with self:
            got = getattr(module, name.removeprefix("triton_"))(*args, *rest)
        for i, (x, y) in enumerate(zip(tree_leaves(got), tree_leaves(expected), strict=True)):
            if _layout(x) != _layout(y):
                self.wrong.append(f"output {i} of {name}: {_layout(x)}, its fake kernel's {_layout(y)}")
        return got

    def launch(self, name: str, grid: tuple, arguments: tuple) -> None:
        self.launches.append(name)
        here = torch.device("cuda", self.current)
        for i, x in enumerate(arguments):
            if isinstance(x, Tensor) and x.device != here:
                self.wrong.append(f"{name}: argument {i} is on {x.device}, the current device is {here}")
        if not all(isinstance(size, int) and size > 0 for size in grid):
            self.wrong.append(f"{name}: a grid of {grid}")

    def address(self, storage: Any) -> int:
        """Of a storage without memory: far from all others'."""
        return (1 + self._storages.setdefault(storage._cdata, len(self._storages))) << 40

    @contextmanager
    def as_current(self, x: Any) -> Iterator[None]:
        """torch.cuda.device_of(tensor), torch.cuda.device(device)."""
        device = x.device if isinstance(x, Tensor) else torch.device("cuda", x) if isinstance(x, int) else x
        before, self.current = self.current, device.index if device.type == "cuda" else self.current
        try:
            yield
        finally:
            self.current = before

    def stream(self, device: Any = None) -> Any:
        return SimpleNamespace(synchronize=lambda: self.waits.append(f"a stream is waited for in {_place()}"))


class _Launcher:
    """In the place of a kernel in the module that launches it."""

    def __init__(self, name: str, device: Device):
        self.name, self.device = name, device

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return lambda *arguments, **options: self.device.launch(self.name, grid, arguments)


def _forget() -> None:
    """What was kept of a device's properties: they are of a device with the same name."""
    for value in vars(importlib.import_module("ssl_fast.kernels.tuning.table")).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()


@contextmanager
def fake_cuda(current: int = 0, **properties: Any) -> Iterator[Device]:
    """Two H100 that hold fake tensors; whatever is made inside, and every call, is of them.

    current: which of them torch.cuda.current_device() is.
    """
    from triton.runtime.jit import JITFunction

    device = Device(current)
    modules = [importlib.import_module(x.name) for x in pkgutil.walk_packages(kernels.__path__, "ssl_fast.kernels.")]
    described = SimpleNamespace(**{**H100, **properties})
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    replace(module, name, _Launcher(value.fn.__name__, device))
        replace(torch.cuda, "get_device_properties", lambda *_: described)
        replace(torch.cuda, "device_of", device.as_current)
        replace(torch.cuda, "device", device.as_current)
        replace(torch.cuda, "current_device", lambda: device.current)
        replace(torch.cuda, "current_stream", device.stream)
        replace(torch.cuda, "is_current_stream_capturing", lambda: device.capturing == device.current)
        replace(Tensor, "record_stream", lambda x, stream: None)
        offset = lambda x: x.storage_offset() * x.element_size()  # noqa: E731
        replace(Tensor, "data_ptr", lambda x: device.address(x.untyped_storage()) + offset(x))
        replace(torch.UntypedStorage, "data_ptr", lambda storage: device.address(storage))
        ema = importlib.import_module("ssl_fast.kernels.ema")
        replace(ema, "_plans", ema._Plans())  # addresses mean nothing outside
        _forget()
        stack.callback(_forget)
        # The updates have C++ kernels for CUDA as well, whose host code needs a driver.
        stack.enter_context(ssl_fast.backend("triton"))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(device)
        yield device


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """loss.sum().backward(), node by node: autograd's engine asks for a driver before it visits a node of the device.

    As there, a gradient gets the shape, dtype and device of what it belongs to. Hooks are not called.
    """
    order: list[Any] = []
    seen: set[Any] = set()
    stack = [(loss.grad_fn, False)]
    while stack:  # nodes after all that they lead to
        node, finished = stack.pop()
        if finished:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {loss.output_nr: torch.ones_like(loss)}}
    for node in reversed(order):
        known = gradients.pop(node, {})
        if known:
            _pass_on(node, [known.get(i) for i in range(len(node._input_metadata))], gradients)


def _of_python(node: Any, given: list[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients that a torch.autograd.Function gives to the arguments that want one."""
    zeros = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in node._input_metadata)
    found = node.apply(*(zero if x is None else x for x, zero in zip(given, zeros, strict=True)))
    found = found if isinstance(found, tuple) else (found,)
    return tuple(x for x, wanted in zip(found, node.needs_input_grad, strict=True) if wanted)


def _pass_on(node: Any, given: list[Tensor | None], gradients: dict[Any, dict[int, Tensor]]) -> None:
    if hasattr(node, "variable"):  # where gradients of a leaf are accumulated
        leaf = node.variable
        leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
        return
    edges = node.next_functions
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        found = _of_python(node, given)
        edges = [edge for edge in edges if edge[0] is not None]
    else:
        found = node(*given)
    for (following, place), gradient in zip(edges, found if isinstance(found, tuple) else (found,), strict=True):
        if following is None or gradient is None:
            continue
        of = following._input_metadata[place]
        if gradient.shape != torch.Size(of.shape):
            gradient = gradient.sum_to_size(of.shape)
        gradient = gradient.to(of.device, of.dtype)
        others = gradients.setdefault(following, {})
        others[place] = others[place] + gradient if place in others else gradient
