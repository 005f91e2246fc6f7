"""Every bad value of every argument of every public call: which error, what it says, and that nothing has changed."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn

import ssl_fast
from ssl_fast import functional
from tests.helpers.bad_values import bad_values
from tests.helpers.fuzz import CALLS, Inputs, parameters


def bits(x) -> object:
    """All that a call could change, to compare bit by bit."""
    if isinstance(x, torch.Tensor):
        # In this order: a lazy or a nested one has no layout, no shape.
        if nn.parameter.is_lazy(x) or x.is_nested or x.layout != torch.strided or x.is_quantized or x.is_meta:
            return repr(x)
        fresh = torch.empty(x.shape, dtype=x.dtype).copy_(x.detach()).reshape(-1)
        return tuple(x.shape), x.stride(), fresh.view(torch.uint8).numpy().tobytes()
    if isinstance(x, nn.Module):
        return x.training, bits(dict(x.state_dict(keep_vars=True)))
    if isinstance(x, dict):
        return {name: bits(each) for name, each in x.items()}
    if isinstance(x, (list, tuple)):
        return [bits(each) for each in x]
    return x.tobytes() if isinstance(x, np.ndarray) else repr(x)


def state_of(function, arguments: dict) -> object:
    """Of a call: its arguments, the module that it belongs to, the random numbers."""
    return bits(arguments), bits(getattr(function, "__self__", function)), torch.get_rng_state().numpy().tobytes()


def cases() -> list:
    """Each argument of each call."""
    return [(call, argument) for call, make in CALLS.items() for argument in parameters(make(Inputs())[0])]


def names_an_argument(message: str, names) -> bool:
    """At its start: "labels: ", or a part of one, "exclude[1]: "."""
    return message.partition(":")[0].partition("[")[0] in names


def fitting(call: str, argument: str):
    """(function, arguments that fit, the one of them that is asked for)."""
    function, arguments = CALLS[call](Inputs())
    return function, arguments, arguments.get(argument, parameters(function)[argument].default)


def problem_with(call: str, argument: str, label: str) -> str:
    """What is wrong with how the call takes this bad value; empty where it is refused as it should be."""
    function, arguments, good = fitting(call, argument)
    names, bad = parameters(function), bad_values(call, argument, good)[label]
    arguments[argument] = bad.value(good)
    before = state_of(function, arguments)
    try:
        function(**arguments)
        return "no error"
    except Exception as error:
        message, kind = str(error), type(error)
    if kind not in ((ValueError, TypeError) if bad.error is None else (bad.error,)):
        return f"{kind.__name__}: {message}"
    if not names_an_argument(message, names if bad.related else (argument,)):
        return f"does not name {argument}: {message}"
    if "expected" not in message or not ("got" in message or "expected None" in message) or "\n" in message:
        return f"not one line of what was expected and what came: {message}"
    return "" if state_of(function, arguments) == before else f"something has changed before: {message}"


@pytest.mark.filterwarnings("ignore")  # of PyTorch: sparse and nested tensors are in beta
@pytest.mark.parametrize(("call", "argument"), cases())
def test_bad_values_are_named_and_change_nothing(call, argument):
    labels = bad_values(call, argument, fitting(call, argument)[-1])
    assert not {label: problem for label in labels if (problem := problem_with(call, argument, label))}


@pytest.mark.parametrize("call", CALLS)
def test_what_fits_is_taken(call):
    function, arguments = CALLS[call](Inputs())
    function(**arguments)


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_keyword_is_named_and_changes_nothing(call):
    function, arguments = CALLS[call](Inputs())
    before = state_of(function, arguments)
    with pytest.raises(TypeError, match="'temperatur'"):
        function(**arguments, temperatur=0.1)
    assert state_of(function, arguments) == before


def test_a_number_is_no_sequence_of_tensors():
    with pytest.raises(TypeError, match=r"source: expected .* got"):
        ssl_fast.ema_update_([torch.ones(2)], torch.tensor(1.0), 0.9)


def test_every_public_call_is_in_the_table():
    expected = set(functional.__all__)
    for name in set(ssl_fast.__all__) - {"ContrastiveStats"}:  # a result
        found = getattr(ssl_fast, name)
        if inspect.ismodule(found):
            continue  # functional's names are above; reference checks nothing
        expected.add(name)
        if inspect.isclass(found) and issubclass(found, nn.Module):
            methods = [
                method for base in found.__mro__ if base.__module__.startswith("ssl_fast") for method in vars(base)
            ]
            expected |= {f"{name}.{method}" for method in methods if method[0] != "_" and method != "extra_repr"}
    missing = expected - {call.partition(" ")[0] for call in CALLS}
    # What its module takes; what tests/compat/test_compat_patching.py tries.
    assert missing == {"FlatMomentum.forward", "patch", "unpatch"}
