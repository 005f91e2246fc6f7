"""Integer instructions of the simulator against Python's integers."""

import itertools

import numpy as np
import pytest

from .requirements import needs_simulator
from .snippets import evaluate

pytestmark = needs_simulator

EDGES = (0, 1, 2, 3, 7, 31, 32, 33, 255, -1, -2, -7, -100)


def numbers(bits: int) -> list[int]:
    """As bit patterns: small numbers and those at the ends of the ranges."""
    top = 1 << bits
    return sorted({value % top for value in (*EDGES, top // 2, top // 2 - 1, top // 2 + 1, top // 3)})


def read(pattern: int, type: str) -> int:
    bits = int(type[1:])
    pattern %= 1 << bits
    return pattern - (1 << bits) if type[0] == "s" and pattern >> (bits - 1) else pattern


def check(instruction: str, expected, operand_types: list[str], result_type: str) -> None:
    """`expected`: of Python integers, any integer congruent to the result."""
    patterns = [numbers(int(type[1:])) for type in operand_types]
    if len(patterns) > 2:
        patterns = [values[::2] for values in patterns]
    rows = list(itertools.product(*patterns))
    columns = [np.array(c, f"u{int(t[1:]) // 8}") for c, t in zip(zip(*rows, strict=True), operand_types, strict=True)]
    bits = int(result_type[1:])
    names = ", ".join(f"%{name}" for name in "abcd"[: len(columns)])
    got = evaluate(f"{instruction} %result, {names};", f"u{bits // 8}", *columns).tolist()
    values = [[read(pattern, t) for pattern, t in zip(row, operand_types, strict=True)] for row in rows]
    wanted = [expected(*row) % (1 << bits) for row in values]
    wrong = [(v, hex(g), hex(w)) for v, g, w in zip(values, got, wanted, strict=True) if g != w]
    assert not wrong, f"{instruction}: operands, got, wanted: {wrong[:5]}"


def quotient(x, y):
    """Truncated; of a division by zero all ones."""
    return -1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def remainder(x, y):
    return x if y == 0 else x - quotient(x, y) * y


BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul.lo": lambda x, y: x * y,
    "div": quotient,
    "rem": remainder,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic(name, type):
    check(f"{name}.{type}", BINARY[name], [type, type], type)


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_products(type):
    bits = int(type[1:])
    check(f"mul.hi.{type}", lambda x, y: (x * y) >> bits, [type, type], type)
    check(f"mad.lo.{type}", lambda x, y, z: x * y + z, [type] * 3, type)
    check(f"mad.hi.{type}", lambda x, y, z: ((x * y) >> bits) + z, [type] * 3, type)
    if bits < 64:
        wide = f"{type[0]}{2 * bits}"
        check(f"mul.wide.{type}", lambda x, y: x * y, [type, type], wide)
        check(f"mad.wide.{type}", lambda x, y, z: x * y + z, [type, type, wide], wide)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_shifts(bits):
    u, s = f"u{bits}", f"s{bits}"
    check(f"and.b{bits}", lambda x, y: x & y, [u, u], u)
    check(f"or.b{bits}", lambda x, y: x | y, [u, u], u)
    check(f"xor.b{bits}", lambda x, y: x ^ y, [u, u], u)
    check(f"not.b{bits}", lambda x: ~x, [u], u)
    # Counts beyond the width are not taken modulo it.
    check(f"shl.b{bits}", lambda x, n: x << min(n, bits), [u, "u32"], u)
    check(f"shr.u{bits}", lambda x, n: x >> min(n, bits), [u, "u32"], u)
    check(f"shr.s{bits}", lambda x, n: x >> min(n, bits), [s, "u32"], s)
    check(f"neg.s{bits}", lambda x: -x, [s], s)
    check(f"abs.s{bits}", abs, [s], s)


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    u, s = f"u{bits}", f"s{bits}"

    def highest(x):  # the first bit that is not the sign
        return (x if x >= 0 else ~x).bit_length() - 1

    check(f"popc.b{bits}", lambda x: x.bit_count(), [u], "u32")
    check(f"clz.b{bits}", lambda x: bits - x.bit_length(), [u], "u32")
    check(f"brev.b{bits}", lambda x: int(f"{x:0{bits}b}"[::-1], 2), [u], u)
    check(f"bfind.{u}", highest, [u], "u32")
    check(f"bfind.{s}", highest, [s], "u32")
    check(f"bfind.shiftamt.{u}", lambda x: bits - 1 - highest(x) if x else -1, [u], "u32")


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(bits):
    u, s = f"u{bits}", f"s{bits}"

    def extended(x, position, length):  # position and length count modulo 256
        position, length = position & 255, length & 255
        if length == 0:
            return 0
        sign = x >> min(position + length - 1, bits - 1) & 1
        inside = max(min(length, bits - position), 0)
        return (x >> position & ((1 << inside) - 1)) - (sign << inside)

    def inserted(x, y, position, length):
        position, length = position & 255, length & 255
        field = ((1 << length) - 1) << position
        return (y & ~field) | (x << position & field)

    check(f"bfe.{u}", lambda x, p, n: x >> (p & 255) & ((1 << (n & 255)) - 1), [u, "u32", "u32"], u)
    check(f"bfe.{s}", extended, [s, "u32", "u32"], s)
    check(f"bfi.b{bits}", inserted, [u, u, "u32", "u32"], u)


def test_logic_of_three():
    for table, function in {
        0xE8: lambda a, b, c: (a & b) | (a & c) | (b & c),
        0x96: lambda a, b, c: a ^ b ^ c,
        0xCA: lambda a, b, c: (a & b) | (~a & c),
        0x1E: lambda a, b, c: a ^ (b | c),
    }.items():
        u = np.array([0x0F0F1234, 0xFFFF0000, 0x80000001], np.uint32)
        a, b, c = (column.astype(np.uint32) for column in np.array(list(itertools.product(u, u, u))).T)
        got = evaluate(f"lop3.b32 %result, %a, %b, %c, {table:#x};", "u4", a, b, c)
        assert np.array_equal(got, function(a, b, c))


def test_shifts_of_two_registers():
    def shifted(direction, wrap):
        def function(low, high, count):
            count = count & 31 if wrap else min(count, 32)
            both = high << 32 | low
            return both >> count if direction == "r" else both << count >> 32

        return function

    for direction, mode in itertools.product("lr", ("wrap", "clamp")):
        check(f"shf.{direction}.{mode}.b32", shifted(direction, mode == "wrap"), ["u32"] * 3, "u32")


def test_permutation_of_bytes():
    def permuted(a, b, selectors):
        pool = (b << 32 | a).to_bytes(8, "little")
        result = []
        for index in range(4):
            selector = selectors >> 4 * index & 15
            byte = pool[selector & 7]
            result.append((255 if byte & 128 else 0) if selector & 8 else byte)
        return int.from_bytes(bytes(result), "little")

    a, b = np.full(6, 0x83020100, np.uint32), np.full(6, 0x77F66554, np.uint32)
    selectors = np.array([0x3210, 0x7654, 0x5410, 0x0123, 0xBA98, 0xFEDC], np.uint32)
    got = evaluate("prmt.b32 %result, %a, %b, %c;", "u4", a, b, selectors)
    assert got.tolist() == [permuted(*map(int, row)) for row in zip(a, b, selectors, strict=True)]


COMPARISONS = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}


@pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_comparisons(type):
    values = numbers(int(type[1:]))
    rows = list(itertools.product(values, values))
    a, b = (np.array(column, f"u{int(type[1:]) // 8}") for column in zip(*rows, strict=True))
    for name, function in COMPARISONS.items():
        body = f"setp.{name}.{type} %p0, %a, %b; selp.b32 %result, 1, 0, %p0;"
        wanted = [int(function(read(x, type), read(y, type))) for x, y in rows]
        assert evaluate(body, "u4", a, b).tolist() == wanted, name


def test_comparison_combined_with_a_predicate():
    a, b = np.array([1, 1, 2, 2], np.uint32), np.array([1, 0, 1, 0], np.uint32)
    for combination, function in {
        "and": lambda x, y: x and y,
        "or": lambda x, y: x or y,
        "xor": lambda x, y: x != y,
    }.items():
        for negation in ("", "!"):
            body = f"""
                setp.ne.b32 %p0, %b, 0;
                setp.eq.{combination}.u32 %p1|%p2, %a, 1, {negation}%p0;
                selp.b32 %r1, 1, 0, %p1;
                selp.b32 %r2, 2, 0, %p2;
                or.b32 %result, %r1, %r2;
            """
            other = [(y != 0) != (negation == "!") for y in b]
            wanted = [int(function(x == 1, y)) + 2 * int(function(x != 1, y)) for x, y in zip(a, other, strict=True)]
            assert evaluate(body, "u4", a, b).tolist() == wanted, (combination, negation)


def test_registers_packed_and_unpacked():
    a = np.array([0x1122334455667788, 0xFFFFFFFF00000001], np.uint64)
    body = "mov.b64 {%r0, %r1}, %a; mov.b32 {%h0, %h1}, %r0; mov.b32 %r0, {%h1, %h0}; mov.b64 %result, {%r1, %r0};"
    assert evaluate(body, "u8", a).tolist() == [0x7788556611223344, 0x00010000FFFFFFFF]
