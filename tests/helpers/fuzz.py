"""Every public call with arguments that fit: what test_errors.py and test_fuzz.py run over.

A new function takes one line in LOSSES or CALLS; a new argument one in `bad_values.KINDS`.
"""

import inspect

import torch
from torch import nn

import ssl_fast
from ssl_fast import MemoryBank, NegativeQueue, functional
from tests.helpers.loss_cases import CLASSES


class Inputs:
    """Makes a call's tensors, in one dtype. finish: gives each of embeddings other values, strides or a gradient."""

    def __init__(self, seed=0, count=6, others=7, dim=5, dtype=torch.float32, finish=lambda x: x):
        self.generator = torch.Generator().manual_seed(seed)
        self.seed, self.count, self.others, self.dim = seed, count, others, dim
        self.dtype, self.finish = dtype, finish

    def rows(self, *sizes):
        sizes = (*(sizes or (self.count,)), self.dim)
        return self.finish(torch.randn(sizes, generator=self.generator).to(self.dtype))

    def places(self, *sizes, of=3):
        return torch.randint(of, sizes or (self.count,), generator=self.generator)

    def ids(self):
        return self.places(), self.places(self.others)

    def queue(self, ids=False):
        return NegativeQueue(self.others, self.dim, self.dtype, self.seed, ids)

    def weights(self):
        return torch.rand(self.count, generator=self.generator)

    def bank(self):
        return MemoryBank(self.others, self.dim, dtype=self.dtype, seed=self.seed)

    def encoder(self):
        module = nn.Sequential(nn.Linear(self.dim, 3), nn.BatchNorm1d(3))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=self.generator))
        return module


def _together(x):
    """Rows with each other: one tensor twice, and so their ids."""
    rows, ids = x.rows(), x.places()
    return {"a": rows, "b": rows, "only": (ids, ids)}


# The arguments of each loss: the function's name, then the variant.
LOSSES = {
    "nt_xent": lambda x: {"z1": x.rows(), "z2": x.rows()},
    "nt_xent weighted": lambda x: {"z1": x.rows(), "z2": x.rows(), "weights": x.weights()},
    "info_nce": lambda x: {
        "query": x.rows(), "positive": x.rows(), "negatives": x.rows(x.others), "exclude": x.ids(),
    },
    "info_nce own": lambda x: {"query": x.rows(), "positive": x.rows(), "negatives": x.rows(x.count, 3)},
    "info_nce queue": lambda x: {"query": x.rows(), "positive": x.rows(), "negatives": x.queue(), "exclude": x.ids()},
    "info_nce in batch": lambda x: {"query": x.rows(), "positive": x.rows(), "exclude": (x.places(),) * 2},
    "multi_positive_info_nce": lambda x: {
        "query": x.rows(), "positives": x.rows(x.count, 3), "negatives": x.rows(x.others),
    },
    "multi_positive_info_nce in batch": lambda x: {"query": x.rows(), "positives": x.rows(x.count, 2)},
    "moco_v3": lambda x: {name: x.rows() for name in ("query1", "query2", "key1", "key2")},
    "supcon": lambda x: {"features": x.rows(), "labels": x.places()},
    "supcon views": lambda x: {"features": x.rows(x.count, 2), "labels": x.places(), "weights": x.weights()},
    "dcl": lambda x: {"z1": x.rows(), "z2": x.rows()},
    "hard_negative_nt_xent": lambda x: {"z1": x.rows(), "z2": x.rows()},
    "clip": lambda x: {"a": x.rows(), "b": x.rows()},
    "siglip": lambda x: {"a": x.rows(), "b": x.rows()},
    "instance_discrimination": lambda x: {"features": x.rows(), "index": x.places(), "bank": x.bank().bank},
    "instance_nce": lambda x: {
        "features": x.rows(), "index": x.places(), "noise": x.places(x.count, 4), "bank": x.bank().bank,
        "normalizer": 9.0,
    },
    "similarity_lse": lambda x: {"a": x.rows(), "b": x.rows(x.others), "exclude": x.ids()},
    "similarity_lse together": _together,
}  # fmt: skip


def use_backend(name):
    with ssl_fast.backend(name):
        pass


# All other calls: (what is called, its arguments).
CALLS = {
    "nce_normalizer": lambda x: (
        functional.nce_normalizer,
        {"features": x.rows(), "index": x.places(), "noise": x.places(x.count, 4), "bank": x.bank().bank},
    ),
    "NegativeQueue": lambda x: (NegativeQueue, {"size": 4, "dim": 3}),
    "NegativeQueue.enqueue_": lambda x: (x.queue(ids=True).enqueue_, {"keys": x.rows(), "ids": x.places()}),
    "NegativeQueue.enqueue_ without ids": lambda x: (x.queue().enqueue_, {"keys": x.rows()}),
    "MemoryBank": lambda x: (MemoryBank, {"size": 4, "dim": 3}),
    "MemoryBank.update_": lambda x: (
        x.bank().update_, {"index": torch.arange(min(x.count, x.others)), "features": x.rows(min(x.count, x.others))}
    ),
    "FlatMomentum": lambda x: (ssl_fast.FlatMomentum, {"encoder": x.encoder()}),
    "FlatMomentum.update_": lambda x: (ssl_fast.FlatMomentum(x.encoder()).update_, {"momentum": 0.9}),
    "LearnableTemperature": lambda x: (ssl_fast.LearnableTemperature, {}),
    "LearnableTemperature.forward": lambda x: (ssl_fast.LearnableTemperature(), {}),
    "InstanceDiscriminationLoss.forward sampled": lambda x: (
        ssl_fast.InstanceDiscriminationLoss(negatives=3), LOSSES["instance_discrimination"](x)
    ),
    "ema_update_": lambda x: (ssl_fast.ema_update_, {"target": x.encoder(), "source": x.encoder(), "momentum": 0.9}),
    "ema_update_ lists": lambda x: (
        ssl_fast.ema_update_, {"target": [x.rows().detach().clone(), x.places()], "source": [x.rows(), x.places()],
                               "momentum": 0.9}
    ),
    "cosine_momentum": lambda x: (ssl_fast.cosine_momentum, {"step": 3, "steps": 10, "start": 0.99}),
    "backend": lambda x: (use_backend, {"name": "reference"}),
    "warmup": lambda x: (ssl_fast.warmup, {"device": "cpu", "shapes": [(2, 3)]}),
}  # fmt: skip


def _add_losses():
    for name, arguments in LOSSES.items():
        function, _, variant = name.partition(" ")
        CALLS[name] = lambda x, f=function, make=arguments: (getattr(functional, f), make(x))
        # DCLWLoss is DCLLoss with another default.
        classes = [CLASSES[function]] if function in CLASSES else []
        classes += [ssl_fast.DCLWLoss] if function == "dcl" else []
        for of_function in classes:
            forward = f"{of_function.__name__}.forward {variant}".rstrip()
            CALLS[of_function.__name__] = lambda x, f=of_function: (f, {})
            CALLS[forward] = lambda x, f=of_function, make=arguments: (f(), make(x))


_add_losses()


def parameters(function) -> dict[str, inspect.Parameter]:
    """What a call takes; of a module that is called, what its forward takes."""
    found = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    # The process group is distributed's: its tests hold it.
    return {name: parameter for name, parameter in found.items() if name not in ("self", "group")}
