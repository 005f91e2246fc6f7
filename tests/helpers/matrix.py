"""What works with what: each operator, loss and update against PyTorch's features, every cell found by a probe.

A subject is a module and its inputs; a probe takes a subject and returns "yes", or "-" with the reason why it cannot
be run here. Its exception is a "no".
"""

import copy
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import ssl_fast
from ssl_fast import FlatMomentum, MemoryBank, NegativeQueue, functional
from tests.helpers.loss_cases import ALL_CASES, arguments_of, gradients_of, operator_of

SIZES = {"count": 5, "negatives": 4, "dim": 3}


class Subject(NamedTuple):
    """make: a new module; inputs: of its forward, in a dtype; gradients: which of them can have one.

    function: what users call, whose signature says whether it takes a process group.
    """

    make: Callable[..., nn.Module]
    inputs: Callable[[torch.dtype], list]
    gradients: tuple[int, ...] = ()
    function: Callable | None = None


def as_tuple(out) -> tuple:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


# Losses


class Loss(nn.Module):
    """A function with its options, of the tensors named."""

    def __init__(self, function, names, options, **more):
        super().__init__()
        self.function, self.names, self.options = function, names, {**options, **more}
        # Only so that buffers are found.
        self.parts = nn.ModuleList([x for x in options.values() if isinstance(x, nn.Module)])

    def forward(self, *tensors):
        return self.function(**dict(zip(self.names, tensors, strict=True)), **self.options)


def _sampled(dtype):
    """Arguments of `instance_nce`."""
    arguments = arguments_of("instance_discrimination", **SIZES, dtype=dtype)
    return {**arguments, "noise": torch.tensor([[0, 3], [1, 2], [2, 2], [3, 0], [1, 1]]), "normalizer": 20.0}


# Of the functions that have no case in loss_cases.py: (arguments, which get a gradient).
OTHER_ARGUMENTS = {
    "instance_nce": (_sampled, ["features"]),
    "similarity_lse": (lambda dtype: arguments_of("clip", **SIZES, dtype=dtype), ["a", "b"]),
}


def loss_subject(name: str) -> Subject:
    function = getattr(functional, name)
    case = next((case for case in ALL_CASES if operator_of(case) == name), None)
    if case is None:
        make_arguments, wanted = OTHER_ARGUMENTS[name]
    else:
        wanted = gradients_of(case)

        def make_arguments(dtype):
            return arguments_of(case, **SIZES, dtype=dtype)

    arguments = make_arguments(torch.float32)
    names = [key for key, x in arguments.items() if isinstance(x, torch.Tensor)]
    options = {key: x for key, x in arguments.items() if key not in names}

    def inputs(dtype):
        return [make_arguments(dtype)[key] for key in names]

    return Subject(
        lambda **more: Loss(function, names, options, **more), inputs, tuple(map(names.index, wanted)), function
    )  # fmt: skip


# Updates in place: modules that return what they have written


class Enqueue(nn.Module):
    def __init__(self, **more):
        super().__init__()
        self.queue, self.more = NegativeQueue(7, 3, seed=0), more

    def forward(self, keys):
        self.queue.enqueue_(keys, normalize=True, **self.more)
        return self.queue.queue.clone()


class Remember(nn.Module):
    def __init__(self):
        super().__init__()
        self.bank = MemoryBank(7, 3, seed=0)

    def forward(self, features):
        self.bank.update_(torch.arange(5, device=features.device), features)
        return self.bank.bank.clone()


class Average(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.copy = copy.deepcopy(self.encoder).requires_grad_(False)
        with torch.no_grad():
            self.encoder[0].weight.mul_(2)

    def forward(self):
        ssl_fast.ema_update_(self.copy, self.encoder, 0.5)
        return tuple(t.clone() for t in (*self.copy.parameters(), *self.copy.buffers()))


class AverageFlat(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 4)
        self.flat = FlatMomentum(self.encoder)
        with torch.no_grad():
            self.encoder.weight.mul_(2)

    def forward(self):
        self.flat.update_(0.5)
        return tuple(t.clone() for t in self.flat.module.parameters())


def _five_rows(dtype):
    return [torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)]


UPDATES = {
    "NegativeQueue.enqueue_": Subject(Enqueue, _five_rows, function=NegativeQueue.enqueue_),
    "MemoryBank.update_": Subject(Remember, _five_rows, function=MemoryBank.update_),
    "ema_update_": Subject(Average, lambda dtype: [], function=ssl_fast.ema_update_),
    "FlatMomentum.update_": Subject(AverageFlat, lambda dtype: [], function=FlatMomentum.update_),
}


# Operators, with the arguments that losses and updates give them


class Calls(TorchDispatchMode):
    """Notes the package's operators and their arguments, in the forward and the backward pass."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ssl_fast":
            kept = _pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, kwargs or {}))
            self.found.setdefault(function, kept)
        return function(*args, **(kwargs or {}))


# Where the first output is not what has a gradient: the second row, of sigmoids, is for the backward pass alone.
DIFFERENTIABLE = {"similarity_softplus": lambda out: out[0][0]}


class Operator(nn.Module):
    """A call as it was noted, of its tensors; what it writes is a copy, which is returned."""

    def __init__(self, operator, call):
        super().__init__()
        leaves, self.spec = _pytree.tree_flatten(call)
        self.operator, self.fixed = operator, [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        self.writes = operator._schema.is_mutable

    def forward(self, *tensors):
        given = iter([x.clone() for x in tensors] if self.writes else tensors)
        leaves = [next(given) if fixed is None else fixed[0] for fixed in self.fixed]
        args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        out = self.operator(*args, **kwargs)
        if self.writes:
            return tuple(x for x in _pytree.tree_leaves(args) if isinstance(x, torch.Tensor))
        return DIFFERENTIABLE.get(self.operator._schema.name.split("::")[1], lambda out: as_tuple(out)[0])(out)


# Their floats are results of other operators: never half types, some of them always float64.
OF_RESULTS = {"positive_loss"}


def operator_subject(operator, call) -> Subject:
    tensors = [x for x in _pytree.tree_leaves(call) if isinstance(x, torch.Tensor)]
    floats = tuple(place for place, x in enumerate(tensors) if x.is_floating_point())

    of_results = operator._schema.name.split("::")[1] in OF_RESULTS

    def inputs(dtype):
        wanted = [torch.promote_types(dtype, x.dtype) if of_results else dtype for x in tensors]
        return [x.to(to) if x.is_floating_point() else x for x, to in zip(tensors, wanted, strict=True)]

    return Subject(lambda: Operator(operator, call), inputs, () if operator._schema.is_mutable else floats)


# Probes


def run(step, subject: Subject, inputs=None, dtype=torch.float32) -> list[torch.Tensor]:
    """The outputs, and the gradients of a sum of them."""
    inputs = [x.clone() for x in (subject.inputs(dtype) if inputs is None else inputs)]
    wanted = [inputs[place].requires_grad_() for place in subject.gradients]
    outputs = as_tuple(step(*inputs))
    if not wanted:
        return [x.detach() for x in outputs]
    gradients = torch.autograd.grad(sum(x.sum() for x in outputs), wanted, allow_unused=True)
    return [x.detach() for x in (*outputs, *gradients) if x is not None]


def same(results, expected, **tolerance):
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got, want, **(tolerance or {"rtol": 0, "atol": 0}), equal_nan=True)


def eager(subject: Subject) -> str:
    results = run(subject.make(), subject)
    assert all(x.isfinite().all() for x in results if x.is_floating_point())
    if subject.function is not None:
        with ssl_fast.backend("reference"):
            same(results, run(subject.make(), subject), rtol=1e-4, atol=1e-5)
    return "yes"


def compiled(subject: Subject) -> str:
    torch._dynamo.reset()
    step = torch.compile(subject.make(), fullgraph=True, backend="aot_eager")
    same(run(step, subject), run(subject.make(), subject))
    return "yes"


def autocast(subject: Subject) -> str:
    """bfloat16 inputs inside give what they give outside: autocast reaches nothing."""
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(run(subject.make(), subject, dtype=torch.bfloat16))
    same(*results)
    if subject.gradients and subject.function is not None:
        assert results[0][0].dtype == torch.float32
        assert all(x.dtype == torch.bfloat16 for x in results[0][1:])
    return "yes"


def gradcheck(subject: Subject) -> str:
    if not subject.gradients:
        return "- nothing to differentiate"
    inputs = subject.inputs(torch.float64)
    for place in subject.gradients:
        inputs[place].requires_grad_()
    module = subject.make()
    assert torch.autograd.gradcheck(lambda *x: module(*x), inputs)
    return "yes"


def calls_of(subject: Subject) -> dict:
    with Calls() as calls:
        run(subject.make(), subject)
    return calls.found


def opcheck(subject: Subject) -> str:
    """Of every operator that is called, backward too, with the arguments that it gets."""
    found = calls_of(subject)
    if not found:
        return "- no operator: plain PyTorch"
    for operator, (args, kwargs) in found.items():
        torch.library.opcheck(operator, args, kwargs)
    return "yes"


def exported(subject: Subject) -> str:
    inputs = tuple(subject.inputs(torch.float32))
    program = torch.export.export(subject.make(), inputs)
    same(as_tuple(program.module()(*inputs)), as_tuple(subject.make()(*inputs)))
    return "yes"


def distributed(subject: Subject) -> str:
    """A group of this process alone changes nothing; more processes are in tests/distributed."""
    if subject.function is None or "group" not in inspect.signature(subject.function).parameters:
        return "- takes no group"
    if not dist.is_available() or not dist.is_gloo_available():
        return "- torch has no gloo"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        results = run(subject.make(group=dist.group.WORLD), subject)
    finally:
        dist.destroy_process_group()
    same(results, run(subject.make(), subject), rtol=1e-5, atol=1e-6)
    return "yes"


def graph_capture(subject: Subject) -> str:
    """Forward and backward captured, and replayed with other values."""
    if not torch.cuda.is_available():
        return "- no GPU"
    module, inputs = subject.make().cuda(), [x.cuda() for x in subject.inputs(torch.float32)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(module, subject, inputs)
    torch.cuda.synchronize()
    state = copy.deepcopy(module.state_dict())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(module, subject, inputs)
    for x in inputs:
        if x.is_floating_point():
            x.copy_(x.flip(0))
    module.load_state_dict(state)
    graph.replay()
    results = [x.clone() for x in results]
    module.load_state_dict(state)
    same(results, run(module, subject, inputs))
    return "yes"


PROBES = {
    "eager": eager,
    "compile": compiled,
    "autocast": autocast,
    "gradcheck": gradcheck,
    "opcheck": opcheck,
    "export": exported,
    "distributed": distributed,
    "graph capture": graph_capture,
}
