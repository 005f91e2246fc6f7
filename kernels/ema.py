"""The momentum update of a list of tensors (ssl_fast.reference.ema_update_): one launch for all of them.

A table on the device holds the addresses; it is made once for a list and kept, so that later steps copy nothing and
wait for nothing. The first update of a list does both, and so must come before a CUDA graph's capture. Target and
source are read once and the target is written once.
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

# Elements (of copies, bytes) of a program: four 128-bit accesses a thread in float32.
BLOCK = 2048
# The table's codes of float types; everything else is copied, byte by byte.
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
COPY = 4
KEPT_PLANS = 64


@triton.jit
def _place(address, offset, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
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
    """x, or the elements at the address where they are of this TYPE."""
    if CODES & (1 << CODE):
        if code == CODE:
            place = _place(address, offset, TYPE, ALIGNED)
            # A mask by a count that only the device knows would forbid wide accesses.
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
    if CODES & (1 << CODE):
        if code == CODE:
            place = _place(address, offset, TYPE, ALIGNED)
            if end <= count:
                tl.store(place, rounded(x, TYPE))
            else:
                tl.store(place, rounded(x, TYPE), mask=offset < count)


@triton.jit
def _load_any(address, offset, end, count, code, x, CODES: tl.constexpr, ALIGNED: tl.constexpr):
    x = _load(address, offset, end, count, code, x, tl.float32, 0, CODES, ALIGNED)
    x = _load(address, offset, end, count, code, x, tl.bfloat16, 1, CODES, ALIGNED)
    x = _load(address, offset, end, count, code, x, tl.float16, 2, CODES, ALIGNED)
    return _load(address, offset, end, count, code, x, tl.float64, 3, CODES, ALIGNED)


@triton.jit
def _mixed(x):
    """32 bits that look random (ssl_fast.formulas.rounding)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _rounded_at_random(x, seed, place, element):
    """x, float32, as one of the two bfloat16 around it (ssl_fast.formulas.rounding); still float32."""
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
    momentum,  # numbers; or a pointer to one, and None
    rest,
    seed,  # a pointer to one int64, or None
    CODES: tl.constexpr,  # the codes that occur: the others are not compiled
    WIDE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = table + tl.load(places + 2 * tl.program_id(0)) * 6
    target, source, count = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    target_code, source_code = tl.load(entry + 3), tl.load(entry + 4)
    first = tl.load(places + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    offset, end = first + tl.arange(0, BLOCK), first + BLOCK
    if CODES & 16:
        if target_code == 4:
            inside = offset < count
            x = tl.load(source.to(tl.pointer_type(tl.uint8)) + offset, mask=inside, other=0)
            tl.store(target.to(tl.pointer_type(tl.uint8)) + offset, x, mask=inside)
    if CODES & 15:
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
            x = tl.where(added == 0, t, t * kept + s * added)  # 0 * Inf would be NaN
            if CODES & 2:
                if seed is not None:
                    if target_code == 1:
                        x = _rounded_at_random(x.to(tl.float32), tl.load(seed), tl.load(entry + 5), offset).to(WIDE)
            _store(target, offset, end, count, target_code, x, tl.float32, 0, CODES, ALIGNED)
            _store(target, offset, end, count, target_code, x, tl.bfloat16, 1, CODES, ALIGNED)
            _store(target, offset, end, count, target_code, x, tl.float16, 2, CODES, ALIGNED)
            _store(target, offset, end, count, target_code, x, tl.float64, 3, CODES, ALIGNED)


class Launch(NamedTuple):
    table: Tensor
    places: Tensor
    options: dict


class Plan(NamedTuple):
    """What a list of pairs comes to: launches (one, or more where alignment or float64 differ), and the other pairs."""

    launches: list[Launch]
    others: list[int]  # indices of pairs whose elements lie in different orders


class _Plans:
    """The plans that were used last, for several threads: the lock is held while they are looked up, not while made.

    Two threads that meet a list at the same time each make its plan, and either is right.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._by_key: dict[tuple, Plan | None] = {}
        self._captured: list[Plan | None] = []

    def get(self, key: tuple, capturing: bool) -> tuple[bool, Plan | None]:
        """(whether the list is known, its plan). capturing: a graph will know its addresses, so it stays forever."""
        with self._lock:
            if key not in self._by_key:
                return False, None
            plan = self._by_key[key] = self._by_key.pop(key)  # the last used is the last
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
    """Elements in memory order are pairs only where both have the same dense layout."""
    return t.stride() == s.stride() and torch.ops.aten.is_non_overlapping_and_dense(t)


def _memory_is_shared(target: list[Tensor], source: list[Tensor]) -> bool:
    """Whether an entry of the target lies, or may lie, where another tensor of either list does."""

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
    # These copies end before `to` returns: any stream may use the table.
    return Launch(table.to(device), programs.to(device), options)


def _plan(target: list[Tensor], source: list[Tensor]) -> Plan | None:
    """None where pairs share memory."""
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
    """The plan of these lists, made once. The current device is theirs."""
    device = target[0].device
    # All that a plan depends on: another tensor may come to lie at an old address.
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
    """The operator ssl_fast::triton_ema_update_ (csrc/ops.cpp): t = momentum * t + (1 - momentum) * s.

    All on one device, pairs of the same shape: momentum.ema_update_ checks the rest.
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
            # As if every pair were updated in turn, from what its source held then.
            reference.ema_update_(target, source, momentum if momentum_tensor is None else momentum_tensor, seed)
            return
        for table, places, options in plan.launches:
            numbers = (momentum, 1 - momentum)
            if momentum_tensor is not None:
                numbers = (momentum_tensor, None)
            elif options["WIDE"] == tl.float64:  # a number would reach the kernel in float32
                numbers = (torch.full((), momentum, dtype=torch.float64, device=target[0].device), None)
            _ema_kernel[(places.shape[0],)](table, places, *numbers, seed, **options)
            if table.is_cuda and not torch.cuda.is_current_stream_capturing():
                for x in (table, places):
                    x.record_stream(torch.cuda.current_stream())  # until then it is not given to others
    for i in plan.others:
        reference.update_pair_(target[i], source[i], i, momentum if momentum_tensor is None else momentum_tensor, seed)
    # Autograd cannot see the write, and must refuse a backward that saved the old values.
    torch.autograd.graph.increment_version([t for t in target if not t.is_inference()])
