"""The momentum update of a list of tensors (ssl_fast.reference.ema_update_): one launch for all of them.

A table on the device holds the tensors' addresses. It is made once for a list and kept, so that later steps copy
nothing and wait for nothing. The first update of a list does both, and therefore must come before the capture of a CUDA
graph. Target and source are read once, and the target is written once.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from .engine.precision import rounded
from .tuning import table as tuning

# Elements that a program updates, or bytes that it copies: in float32, four 128-bit accesses of each thread.
BLOCK = 2048
# Codes of the dtypes in the table; literals in the kernel, which is told by the bits 1 << code which of them occur.
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
COPY = 4  # for tensors that hold no floats, which are copied byte by byte
KEPT_PLANS = 64


@triton.jit
def _place(address, offset, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers (BLOCK,) to the elements of TYPE, `offset` of them after the address."""
    pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + offset


@triton.jit
def _load(
    address,
    offset,
    end,
    count,
    code,
    x,
    TYPE: tl.constexpr,
    CODE: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """The elements (BLOCK,) at the address if they are of this TYPE, whose code is CODE; else x."""
    if CODES & (1 << CODE):
        if code == CODE:
            place = _place(address, offset, TYPE, ALIGNED)
            # With a mask by a count that only the device knows, the compiler could not use wide accesses.
            if end <= count:
                x = tl.load(place).to(x.dtype)
            else:
                x = tl.load(place, mask=offset < count, other=0.0).to(x.dtype)
    return x


@triton.jit
def _store(
    address,
    offset,
    end,
    count,
    code,
    x,
    TYPE: tl.constexpr,
    CODE: tl.constexpr,
    CODES: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Stores x (BLOCK,) at the address if the elements there are of this TYPE, whose code is CODE."""
    if CODES & (1 << CODE):
        if code == CODE:
            place = _place(address, offset, TYPE, ALIGNED)
            if end <= count:
                tl.store(place, rounded(x, TYPE))
            else:
                tl.store(place, rounded(x, TYPE), mask=offset < count)


@triton.jit
def _load_any(address, offset, end, count, code, x, CODES: tl.constexpr, ALIGNED: tl.constexpr):
    """The elements at the address, of the type that has this code; x is of the dtype that they are given."""
    x = _load(address, offset, end, count, code, x, tl.float32, 0, CODES, ALIGNED)
    x = _load(address, offset, end, count, code, x, tl.bfloat16, 1, CODES, ALIGNED)
    x = _load(address, offset, end, count, code, x, tl.float16, 2, CODES, ALIGNED)
    return _load(address, offset, end, count, code, x, tl.float64, 3, CODES, ALIGNED)


@triton.jit
def _store_any(address, offset, end, count, code, x, CODES: tl.constexpr, ALIGNED: tl.constexpr):
    """Stores x at the address, in the type that has this code."""
    _store(address, offset, end, count, code, x, tl.float32, 0, CODES, ALIGNED)
    _store(address, offset, end, count, code, x, tl.bfloat16, 1, CODES, ALIGNED)
    _store(address, offset, end, count, code, x, tl.float16, 2, CODES, ALIGNED)
    _store(address, offset, end, count, code, x, tl.float64, 3, CODES, ALIGNED)


@triton.jit
def _mixed(x):
    """32 bits that look random, made of the 32 bits x (ssl_fast.formulas.rounding)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded_at_random(x, seed, place, element):
    """float32 x rounded at random to one of the two bfloat16 around it (ssl_fast.formulas.rounding); still float32."""
    key = _mixed(seed.to(tl.uint32) + _mixed((seed >> 32).to(tl.uint32)))
    key = _mixed(place.to(tl.uint32) + key)
    random = _mixed(element.to(tl.uint32) + _mixed((element >> 32).to(tl.uint32) + key))
    bits = x.to(tl.uint32, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, ((bits + (random >> 16)) & 0xFFFF0000).to(tl.float32, bitcast=True), x)


@triton.jit
def _ema_kernel(
    table,  # (tensors, 6) int64: target, source, count, code of the target, code of the source, place in the list
    places,  # (programs, 2) int32: tensor, block
    momentum,  # a number, or with rest None a pointer to one
    rest,  # 1 - momentum, or None
    seed,  # a pointer to one int64, or None
    CODES: tl.constexpr,  # the bits 1 << code of the codes that occur: code for the others is not compiled
    WIDE: tl.constexpr,  # the dtype of the arithmetic
    ALIGNED: tl.constexpr,  # whether all tensors begin at a multiple of 16 bytes
    BLOCK: tl.constexpr,
):
    """A program updates one block of one tensor."""
    entry = table + tl.load(places + 2 * tl.program_id(0)) * 6
    target, source, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    target_code, source_code = tl.load(entry + 3), tl.load(entry + 4)
    first = tl.load(places + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    offset, end = first + tl.arange(0, BLOCK), first + BLOCK
    if CODES & 0b10000:
        if target_code == 4:
            inside = offset < count
            x = tl.load(source.to(tl.pointer_type(tl.uint8)) + offset, mask=inside, other=0)
            tl.store(target.to(tl.pointer_type(tl.uint8)) + offset, x, mask=inside)
    if CODES & 0b01111:
        if target_code != 4:
            if rest is None:
                m = tl.load(momentum).to(tl.float64)
                m = tl.where((m >= 0) & (m <= 1), m, float("nan"))
                kept, added = m.to(WIDE), (1 - m).to(WIDE)
            else:
                kept, added = momentum, rest
            nothing = tl.zeros((BLOCK,), WIDE)
            t = _load_any(target, offset, end, count, target_code, nothing, CODES, ALIGNED)
            s = _load_any(source, offset, end, count, source_code, nothing, CODES, ALIGNED)
            x = tl.where(added == 0, t, t * kept + s * added)  # where nothing is added, 0 * Inf would be NaN
            if CODES & 0b00010:
                if seed is not None:
                    if target_code == 1:
                        x = _rounded_at_random(x.to(tl.float32), tl.load(seed), tl.load(entry + 5), offset).to(WIDE)
            _store_any(target, offset, end, count, target_code, x, CODES, ALIGNED)


class Launch(NamedTuple):
    """The arguments of one launch of the kernel, on the device."""

    table: Tensor  # (tensors, 6) int64
    places: Tensor  # (programs, 2) int32
    options: dict


class Plan(NamedTuple):
    """How a list of pairs (target, source) is updated."""

    launches: list[Launch]  # one, or more where alignment or float64 differ
    others: list[int]  # indices of the pairs whose elements lie in different orders, which PyTorch updates


class _Plans:
    """The plans that were used last, shared by several threads.

    The lock is held while a plan is looked up, and not while it is made: two threads that need the plan of one list at
    the same time both make it, and either plan is right.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._by_key: dict[tuple, Plan | None] = {}
        self._captured: list[Plan | None] = []

    def get(self, key: tuple, capturing: bool) -> tuple[bool, Plan | None]:
        """(whether the list is known, its plan). capturing: a CUDA graph keeps the addresses, so the plan is kept."""
        with self._lock:
            if key not in self._by_key:
                return False, None
            # Moved to the end: the first plan is the one whose last use is longest ago.
            plan = self._by_key[key] = self._by_key.pop(key)
            if capturing:
                self._captured.append(plan)
            return True, plan

    def keep(self, key: tuple, plan: Plan | None) -> None:
        with self._lock:
            self._by_key.pop(key, None)
            while len(self._by_key) >= KEPT_PLANS:
                del self._by_key[next(iter(self._by_key))]
            self._by_key[key] = plan


_plans = _Plans()


def _same_layout(t: Tensor, s: Tensor) -> bool:
    """Whether t and s have the same dense layout: only then are elements in the order of memory pairs."""
    return t.stride() == s.stride() and torch.ops.aten.is_non_overlapping_and_dense(t)


def _memory_is_shared(target: list[Tensor], source: list[Tensor]) -> bool:
    """Whether an entry of the target lies, or may lie, where an entry of another tensor of either list does."""

    def span(x: Tensor, written: bool) -> tuple[int, int, bool]:
        last = sum((length - 1) * step for length, step in zip(x.shape, x.stride(), strict=True))
        return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size(), written

    spans = [span(t, True) for t in target if t.numel()] + [span(s, False) for s in source if s.numel()]
    written_end = end = 0
    for begin, this_end, written in sorted(spans):
        if begin < written_end or (written and begin < end):
            return True
        end = max(end, this_end)
        if written:
            written_end = max(written_end, this_end)
    return False


def _launch(pairs: list[tuple[Tensor, Tensor, int]], device: torch.device, double: bool, aligned: bool) -> Launch:
    """pairs: (target, source, place in the list). double: whether the arithmetic is in float64."""
    entries, places, codes = [], [], 0
    for t, s, place in pairs:
        of_both = [CODES[t.dtype], CODES[s.dtype]] if t.is_floating_point() else [COPY, COPY]
        count = t.numel() if t.is_floating_point() else t.numel() * t.element_size()
        places += [(len(entries), block) for block in range(triton.cdiv(count, BLOCK))]
        entries.append((t.data_ptr(), s.data_ptr(), count, *of_both, place))
        codes |= 1 << of_both[0] | 1 << of_both[1]
    table, programs = torch.tensor(entries, dtype=torch.int64), torch.tensor(places, dtype=torch.int32)
    wide = tl.float64 if double else tl.float32
    options = {"CODES": codes, "WIDE": wide, "ALIGNED": aligned, "BLOCK": BLOCK, **tuning.LAUNCH}
    # `to` returns only when these copies have ended, so that any stream may use the table.
    return Launch(table.to(device), programs.to(device), options)


def _plan(target: list[Tensor], source: list[Tensor]) -> Plan | None:
    """The plan of two lists; None where pairs share memory, so that the order of the updates matters."""
    if _memory_is_shared(target, source):
        return None
    groups: dict[tuple[bool, bool], list[tuple[Tensor, Tensor, int]]] = {}
    others = []
    for i, (t, s) in enumerate(zip(target, source, strict=True)):
        if t.numel() == 0:
            continue
        if not _same_layout(t, s):
            others.append(i)
            continue
        double = torch.float64 in (t.dtype, s.dtype)
        aligned = t.data_ptr() % 16 == 0 and s.data_ptr() % 16 == 0
        groups.setdefault((double, aligned), []).append((t, s, i))
    return Plan([_launch(pairs, target[0].device, *key) for key, pairs in groups.items()], others)


def _plan_of(target: list[Tensor], source: list[Tensor]) -> Plan | None:
    """The plan of two lists, which is made once. The current device is theirs."""
    device = target[0].device
    # The key holds all that a plan depends on, since another tensor may come to lie at an old address.
    key = (
        device,
        tuple(
            (t.data_ptr(), s.data_ptr(), t.dtype, s.dtype, t.shape, t.stride(), s.stride())
            for t, s in zip(target, source, strict=True)
        ),
    )
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    known, plan = _plans.get(key, capturing)
    if known:
        return plan
    if capturing:
        raise RuntimeError("target: expected tensors that were updated before the graph capture; update them once")
    plan = _plan(target, source)
    _plans.keep(key, plan)
    return plan


def ema_update_(
    target: list[Tensor],
    source: list[Tensor],
    momentum: float,
    momentum_tensor: Tensor | None = None,
    seed: Tensor | None = None,
) -> None:
    """The operator ssl_fast::triton_ema_update_: t = momentum * t + (1 - momentum) * s for every pair of the lists.

    All tensors are on one device, and pairs have the same shape; ema_update_ of the package checks the rest.
    momentum_tensor (0-D): takes the place of the number. seed (0-D, int64): bfloat16 targets are rounded at random.
    """
    if len(target) != len(source):
        raise ValueError(f"source: expected {len(target)} tensors as target, got {len(source)}")
    for i, (t, s) in enumerate(zip(target, source, strict=True)):
        if t.shape != s.shape:
            raise ValueError(f"source[{i}]: expected shape {tuple(t.shape)} as target, got {tuple(s.shape)}")
    if not target:
        return
    with torch.cuda.device_of(target[0]):
        plan = _plan_of(target, source)
        if plan is None:
            # The reference updates the pairs in turn, each from what its source holds by then.
            reference.ema_update_(target, source, momentum if momentum_tensor is None else momentum_tensor, seed)
            return
        for table, places, options in plan.launches:
            numbers = (momentum, 1 - momentum)
            if momentum_tensor is not None:
                numbers = (momentum_tensor, None)
            elif options["WIDE"] == tl.float64:  # Triton passes numbers as float32
                numbers = (torch.full((), momentum, dtype=torch.float64, device=target[0].device), None)
            _ema_kernel[(places.shape[0],)](table, places, *numbers, seed, **options)
            if table.is_cuda and not torch.cuda.is_current_stream_capturing():
                # The memory is not given to others before this stream has got here.
                for x in (table, places):
                    x.record_stream(torch.cuda.current_stream())
    for i in plan.others:
        reference.update_pair_(target[i], source[i], i, momentum if momentum_tensor is None else momentum_tensor, seed)
    # Autograd cannot see the write, and must refuse a backward that saved the old values.
    torch.autograd.graph.increment_version([t for t in target if not t.is_inference()])
