"""The bad values of each kind of argument; a new argument takes one line in KINDS."""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ssl_fast import MemoryBank, NegativeQueue
from tests.helpers.fuzz import Inputs


class Bad(NamedTuple):
    """value: of one that fits. error: None for either. related: the message may name the other argument."""

    value: Callable
    error: type | None
    related: bool = False
    constant: bool = False  # whatever would fit


def _value(x, error=ValueError):
    return Bad(lambda good: x, error, constant=True)


def _no_tensors(*but: str) -> dict[str, Bad]:
    """What is no tensor, and no number either."""
    values = {
        "None": None, "str": "0.5", "bytes": b"1", "list": [0.5, 0.5], "array": np.ones((2, 2)), "dict": {},
        "object": object(), "dtype": torch.float32, "complex": 1j, "bool": True,
    }  # fmt: skip
    return {label: _value(x, TypeError) for label, x in values.items() if label not in but}


def _layouts(plane: bool) -> dict[str, Bad]:
    """plane: of two dimensions or more."""
    makers = {
        "sparse COO": lambda x: x.to_sparse(),
        "quantized": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    }
    if plane:
        makers |= {
            "sparse CSR": lambda x: x.to_sparse_csr(),
            "mkldnn": lambda x: x.float().to_mkldnn(),
            "nested": lambda x: torch.nested.nested_tensor(list(x)),
            "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
        }
    return {label: Bad(maker, TypeError) for label, maker in makers.items()}


def _dtypes(*dtypes) -> dict[str, Bad]:
    return {f"of {str(dtype)[6:]}": Bad(lambda x, to=dtype: x.to(to), TypeError) for dtype in dtypes}


_SHAPES = {
    "0-D": Bad(lambda x: x.flatten()[0], ValueError),
    "1-D": Bad(lambda x: x.flatten(), ValueError),
    "one dimension more": Bad(lambda x: x[None], ValueError, related=True),
    "5-D": Bad(lambda x: x[None, None, None], ValueError),
    "empty": Bad(lambda x: x[:0], ValueError, related=True),
    "a row less": Bad(lambda x: x[1:], ValueError, related=True),
    "meta": Bad(lambda x: x.to("meta"), ValueError, related=True),
}
ROWS = {
    **_no_tensors(), "number": _value(0.5, TypeError), **_SHAPES, **_layouts(plane=True),
    **_dtypes(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn),
    "no columns": Bad(lambda x: x[..., :0], ValueError, related=True),
    "a column less": Bad(lambda x: x[..., 1:], ValueError, related=True),
    "mixed dtype": Bad(lambda x: x.to(torch.float32 if x.dtype == torch.float64 else torch.float64), TypeError, True),
}  # fmt: skip
IDS = {
    **_no_tensors(), "number": _value(1, TypeError), **_SHAPES, **_layouts(plane=False),
    **_dtypes(torch.float32, torch.bool, torch.complex64, torch.float8_e4m3fn),
}  # fmt: skip
del IDS["1-D"]
IDS["None"] = _value(None, None)
WEIGHTS = {
    **_no_tensors("None"), "number": _value(1, TypeError), **_SHAPES, **_layouts(plane=False),
    **_dtypes(torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn),
}  # fmt: skip
del WEIGHTS["1-D"]
PLACES = IDS | {
    "negative": Bad(lambda x: x.clone().fill_(-1), ValueError),
    "past the end": Bad(lambda x: x + 7, ValueError),
}


def _each(pair, change):
    """Of two ids, which of rows with each other are one tensor."""
    first = change(pair[0])
    return first, first if pair[1] is pair[0] else change(pair[1])


PAIRS = {
    **_no_tensors("None", "str"), "number": _value(1, TypeError),
    "str": _value("others", None), "empty tuple": _value((), TypeError), "one": Bad(lambda x: x[:1], TypeError),
    "three": Bad(lambda x: (*x, x[0]), TypeError), "a Tensor": Bad(lambda x: x[0], TypeError),
    "a pair as a Tensor": Bad(lambda x: torch.stack([x[0], x[0]]), TypeError),
    "Nones": _value((None, None), TypeError), "lists": Bad(lambda x: (x[0].tolist(), x[1]), TypeError),
    "first float": Bad(lambda x: (x[0].float(), x[1]), TypeError),
    "second bool": Bad(lambda x: (x[0], x[1].bool()), TypeError),
    "first short": Bad(lambda x: (x[0][1:], x[1]), ValueError),
    "second long": Bad(lambda x: (x[0], torch.cat([x[1], x[1]])), ValueError),
    "second meta": Bad(lambda x: (x[0], x[1].to("meta")), ValueError),
    "sparse": Bad(lambda x: _each(x, torch.Tensor.to_sparse), TypeError),
    "quantized": Bad(lambda x: _each(x, _layouts(plane=False)["quantized"].value), TypeError),
    "two that are equal": Bad(lambda x: (x[0], x[0].clone()), ValueError),
}  # fmt: skip


class _Gives(nn.Module):
    """What is called for a temperature."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self):
        return self.value


_SCALAR_TENSORS = {
    "two elements": _value(torch.ones(2)), "one element": _value(torch.ones(1)), "int tensor": _value(torch.tensor(1)),
    "bool tensor": _value(torch.tensor(True)), "complex tensor": _value(torch.tensor(1j)),
    "meta": _value(torch.ones((), device="meta")), "empty": _value(torch.ones(0)),
    "float8 tensor": _value(torch.ones(()).to(torch.float8_e4m3fn)),
    "sparse 0-D": _value(torch.tensor(0.1).to_sparse(), TypeError),
}  # fmt: skip
_NO_NUMBERS = {"nan": _value(np.nan), "inf": _value(np.inf), "-inf": _value(-np.inf)}
_HUGE = {"no float64": _value(10**400)}
SCALAR = _no_tensors() | _SCALAR_TENSORS | _HUGE
TEMPERATURE = {
    **SCALAR, **_NO_NUMBERS, "zero": _value(0.0), "1e-9": _value(1e-9), "1e9": _value(1e9), "-1e9": _value(-1e9),
    "a module with arguments": _value(nn.Linear(1, 1), TypeError), "module class": _value(nn.Linear, TypeError),
    "a module that gives rows": _value(_Gives(torch.ones(2))),
    "a module that gives a str": _value(_Gives("1"), TypeError),
}  # fmt: skip
SCALE = {label: bad for label, bad in TEMPERATURE.items() if "module" not in label} | {
    "a module": _value(_Gives(0.1), TypeError)
}
NUMBER = {
    **_no_tensors(),
    **_NO_NUMBERS,
    **_HUGE,
    "tensor": _value(torch.tensor(0.5), TypeError),
    "negative": _value(-1.0),
}
MOMENTUM = {**NUMBER, "above 1": _value(1.01)}
SIZE = {
    **_no_tensors(), **_HUGE, "zero": _value(0), "negative": _value(-1), "float": _value(4.0, TypeError),
    "tensor": _value(torch.tensor(4), TypeError),
}  # fmt: skip
CHOICE = {
    **{label: bad._replace(error=None) for label, bad in _no_tensors().items()}, "avg": _value("avg"),
    "empty str": _value(""), "upper case": _value("MEAN"), "tensor": _value(torch.ones(2), None),
}  # fmt: skip
FLAG = _no_tensors("bool") | {"tensor": _value(torch.ones(2), TypeError)}
SEED = {
    **_no_tensors("None"), "float": _value(1.0, TypeError), "65 bits": _value(2**64),
    "two elements": _value(torch.ones(2).long(), None), "float tensor": _value(torch.ones(()), None),
}  # fmt: skip
DTYPE = _no_tensors("dtype") | {
    str(dtype): _value(dtype, TypeError) for dtype in (torch.int64, torch.complex64, torch.float8_e5m2, np.float32)
}


class _Twisted(nn.Module):
    """A module with one parameter that no momentum update takes."""

    def __init__(self, parameter):
        super().__init__()
        self.weight = nn.Parameter(parameter, requires_grad=False)


MODULE = {
    **_no_tensors(), "tensor": _value(torch.ones(2), TypeError), "class": _value(nn.Linear, TypeError),
    "complex module": Bad(lambda good: _Twisted(torch.ones(2, dtype=torch.complex64)), TypeError),
    "float8 module": Bad(lambda good: _Twisted(torch.ones(2).to(torch.float8_e4m3fn)), TypeError),
    "sparse module": Bad(lambda good: _Twisted(torch.ones(2).to_sparse()), TypeError),
    "lazy module": Bad(lambda good: nn.LazyLinear(3), ValueError),
}  # fmt: skip


def _first(change):
    """Of one side of ema_update_, a module or a list: another tensor in the place of the first."""

    def changed(good):
        if isinstance(good, list):
            return [change(good[0]), *good[1:]]
        module = Inputs().encoder()
        module[0].weight = change(nn.Parameter(module[0].weight, requires_grad=False))
        return module

    def as_parameter(x):
        return x if nn.parameter.is_lazy(x) else nn.Parameter(x, requires_grad=False)

    wanted, change = change, lambda x: as_parameter(wanted(x)) if isinstance(x, nn.Parameter) else wanted(x)
    return changed


_SIDE = {
    "lists of lists": lambda good: [[1.0], [2.0]], "an int": lambda good: 5,
    "fewer": lambda good: nn.Linear(2, 3) if isinstance(good, nn.Module) else good[:1],
    "the other kind": lambda good: list(good.parameters()) if isinstance(good, nn.Module) else nn.Linear(1, 1),
    "one shorter": _first(lambda x: x[1:]), "one on meta": _first(lambda x: x.to("meta")),
    "one sparse": _first(torch.Tensor.to_sparse), "one nested": _first(lambda x: torch.nested.nested_tensor([x])),
    "one of integers": _first(torch.Tensor.int), "one complex": _first(lambda x: x.to(torch.complex64)),
    "one float8": _first(lambda x: x.to(torch.float8_e4m3fn)),
    "one lazy": _first(lambda x: nn.UninitializedParameter()),
}  # fmt: skip
SIDE = {label: bad._replace(error=None, related=True) for label, bad in MODULE.items()} | {
    label: Bad(change, None, related=True) for label, change in _SIDE.items()
}
SHAPES = {
    **_no_tensors("dict"), "a pair": _value((2, 3), TypeError), "three sizes": _value([(2, 3, 4)]),
    "zero": _value([(0, 3)]), "negative": _value([(-2, 3)]), "floats": _value([(2.0, 3.0)], TypeError),
}  # fmt: skip
DTYPES = _no_tensors("dict") | {"ints": _value([torch.int64], TypeError), "strings": _value(["float32"], TypeError)}
DEVICE = _no_tensors("str") | {"no such": _value("nowhere"), "tensor": _value(torch.ones(2), TypeError)}

_MATRICES = [
    "z1", "z2", "a", "b", "query", "positive", "query1", "query2", "key1", "key2", "features", "keys", "positives",
    "negatives", "bank",
]  # fmt: skip
KINDS = {
    **dict.fromkeys(_MATRICES, ROWS), "labels": IDS, "ids": IDS, "index": PLACES, "noise": PLACES,
    "exclude": PAIRS, "only": PAIRS, "weights": WEIGHTS,
    "temperature": TEMPERATURE, "scale": SCALE, "logit_scale": SCALE, "bias": SCALAR, "normalizer": SCALAR,
    "sigma": NUMBER | {"zero": _value(0.0)}, "beta": NUMBER, "tau_plus": NUMBER | {"one": _value(1.0)},
    "init": NUMBER | {"zero": _value(0.0), "below 1 / max_scale": _value(1e-3)},
    "max_scale": NUMBER | {"zero": _value(0.0)}, "steps": NUMBER | {"zero": _value(0)},
    "step": _no_tensors() | {k: _SCALAR_TENSORS[k] for k in ("two elements", "one element", "empty", "complex tensor")}
    | _NO_NUMBERS | {"past the end": _value(11), "negative": _value(-1)},
    "momentum": MOMENTUM, "start": MOMENTUM, "end": MOMENTUM,
    "reduction": CHOICE, "form": CHOICE, "buffers": CHOICE, "name": CHOICE,
    **dict.fromkeys(("return_stats", "normalize", "columns", "count_without_positive"), FLAG),
    "size": SIZE, "dim": SIZE, "queue_size": SIZE, "dtype": DTYPE, "seed": SEED,
    "encoder": MODULE, "target": SIDE, "source": SIDE, "device": DEVICE, "shapes": SHAPES, "dtypes": DTYPES,
}  # fmt: skip
_NOT_TAKEN = {"a pair": Bad(lambda good: (torch.ones(6).int(),) * 2, ValueError, related=True)}
_MOMENTUM_OR_TENSOR = MOMENTUM | _SCALAR_TENSORS
# Arguments of another kind than their name's: call/argument.
OTHER_KINDS = {
    "NegativeQueue/ids": FLAG, "InstanceDiscriminationLoss/negatives": SIZE,
    **dict.fromkeys(
        ("ema_update_/momentum", "ema_update_ lists/momentum", "FlatMomentum.update_/momentum"), _MOMENTUM_OR_TENSOR
    ),
    **dict.fromkeys(
        ("info_nce own/exclude", "InfoNCELoss.forward own/exclude", "similarity_lse/only",
         "similarity_lse together/exclude"), _NOT_TAKEN
    ),
    "NegativeQueue.enqueue_ without ids/ids": {"integers": _value(torch.ones(6).int())},
}  # fmt: skip
# What is no error: call/argument/label.
ALLOWED = (
    # Rows of a number of their own, and tensors whose dtypes may differ.
    "similarity_lse/[ab]/a row less", "*/bank/a row less", "[mM]ulti*/negatives/a row less",
    "NegativeQueue.enqueue_ without ids/keys/a row less", "*/features/mixed dtype", "*/keys/mixed dtype",
    "*/negatives/mixed dtype", "*/bank/mixed dtype", "[mM]ulti*/mixed dtype", "similarity_lse*/mixed dtype",
    "[sS]up[cC]on*/features/a column less",
    # None is the default.
    "*/negatives/None", "*/labels/None", "*/queue_size/None", "*/logit_scale/None", "*/sigma/None",
    # A module may go to another device with its temperature; what momentum is read from may be sparse.
    "*Loss/temperature/meta", "*Loss/bias/meta", "*update_*/momentum/tensor", "*update_*/momentum/sparse 0-D",
)  # fmt: skip


def bad_values(call: str, argument: str, good) -> dict[str, Bad]:
    """The bad values for an argument of a call, by their labels. good: one that fits."""
    kind = OTHER_KINDS.get(f"{call}/{argument}", KINDS[argument])
    if good is None or isinstance(good, (NegativeQueue, MemoryBank)):
        kind = {label: bad for label, bad in kind.items() if bad.constant}
    return {k: bad for k, bad in kind.items() if not any(fnmatch(f"{call}/{argument}/{k}", each) for each in ALLOWED)}
