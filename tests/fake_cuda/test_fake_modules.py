"""No copy and no wait in the losses as modules, nor in the drop-ins for other libraries."""

import importlib
from functools import partial

import pytest
import torch
from fake_cases import CASES, HERE, TEMPERATURES, arguments_of, assert_clean, leaf, scalar
from fake_device import backward
from torch import nn

import ssl_fast
from ssl_fast import NegativeQueue
from tests.helpers.loss_cases import CLASSES, operator_of


def rows(*sizes):
    return torch.empty(*(sizes or (30,)), 17, device=HERE).requires_grad_()


def ids(*sizes):
    return torch.zeros(*sizes, dtype=torch.int64, device=HERE)


def queue():
    return NegativeQueue(48, 17).to(HERE)


def run(gpu, loss, *arguments):
    gpu.clear()
    value = loss(*arguments)
    assert_clean(gpu)
    backward(value)


@pytest.mark.parametrize("name", CLASSES)
def test_each_class(name, gpu):
    """With a temperature that is learnt, on the device and left on the CPU."""
    case = next(case for case in CASES if operator_of(case) == name)
    for place in ("module", "leaf on the CPU"):
        loss = CLASSES[name](TEMPERATURES[place]())
        run(gpu, loss, *arguments_of(case).values())
        assert_clean(gpu, returns=place == "leaf on the CPU")


MODULES = {
    "ClipLoss, a scale on the device": lambda: (ssl_fast.ClipLoss(), rows(), rows(), leaf(10.0)),
    "ClipLoss, a scale on the CPU": lambda: (ssl_fast.ClipLoss(), rows(), rows(), scalar(10.0, "cpu")),
    "SigLipLoss, a number": lambda: (ssl_fast.SigLipLoss(), rows(), rows()),
    "SigLipLoss, a parameter": lambda: (ssl_fast.SigLipLoss(bias=nn.Parameter(scalar())), rows(), rows(), leaf(9.0)),
    "DCLWLoss": lambda: (ssl_fast.DCLWLoss(), rows(), rows()),
    "HardNegativeNTXentLoss": lambda: (ssl_fast.HardNegativeNTXentLoss(leaf(), beta=0.0, tau_plus=0.1), rows(), rows()),
    "SupConLoss, in": lambda: (ssl_fast.SupConLoss(form="in", reduction="none"), rows(30), ids(30)),
    "InfoNCELoss, exclude": lambda: (
        partial(ssl_fast.InfoNCELoss(), exclude=(ids(30), ids(48))),
        rows(),
        rows(),
        queue(),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_options_of_classes(name, gpu):
    run(gpu, *MODULES[name]())
    assert_clean(gpu)


@pytest.mark.parametrize("moved", [True, False])
def test_sampled_instances(moved, gpu):
    """Its buffer goes to the device of the features in the first step, where it was not moved there."""
    loss = ssl_fast.InstanceDiscriminationLoss(negatives=5)
    if moved:
        loss.to(HERE)
    gpu.clear()
    loss(rows(), ids(30), rows(48))
    assert len(gpu.copies) == (not moved)
    assert not gpu.waits
    assert gpu.computed.count("aten.index_select") == 1  # the normalizer is estimated from the loss's similarities
    gpu.clear()
    value = loss(rows(), ids(30), rows(48))
    assert gpu.computed.count("aten.index_select") == 1
    backward(value)
    assert_clean(gpu)
    assert loss.normalizer.device == torch.device(HERE)


DROP_INS = {
    "info_nce": lambda x: (x.InfoNCE(leaf()), rows(), rows(), rows(48)),
    "info_nce, own": lambda x: (x.InfoNCE(negative_mode="paired"), rows(), rows(), rows(30, 4)),
    "lightly": lambda x: (x.NTXentLoss(), rows(), rows()),
    "lightly, a bank": lambda x: (x.NTXentLoss(memory_bank_size=(48, 17)).to(HERE), rows(), rows()),
    "lightly, DCLW": lambda x: (x.DCLWLoss(), rows(), rows()),
    "solo_learn": lambda x: (x.simclr_loss_func, rows(), ids(30)),
    "solo_learn, MoCo v2+": lambda x: (x.mocov2plus_loss_func, rows(), rows(), queue().queue.T),
    "solo_learn, MoCo v3": lambda x: (x.mocov3_loss_func, rows(), rows()),
    "supcontrast": lambda x: (x.SupConLoss(), rows(30, 2), ids(30)),
    "supcontrast, one": lambda x: (x.SupConLoss(contrast_mode="one"), rows(30, 2)),
}


@pytest.mark.parametrize("name", DROP_INS)
def test_drop_ins(name, gpu):
    run(gpu, *DROP_INS[name](importlib.import_module(f"ssl_fast.compat.{name.partition(',')[0]}")))
    assert_clean(gpu)
