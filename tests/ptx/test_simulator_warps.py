"""What lanes exchange, and where they part and meet: shuffles, votes, atomics, branches."""

import pytest

from .requirements import needs_simulator
from .simulator import Fault
from .snippets import of_each_thread

pytestmark = needs_simulator

LANES = range(32)


def shuffled(mode: str, operand: int, clamp: int) -> list[int]:
    """Lane, plus 100 where the source was within bounds."""
    return of_each_thread(f"""
        shfl.sync.{mode}.b32 %r1|%p0, %tid, {operand}, {clamp:#x}, -1;
        selp.b32 %r2, 100, 0, %p0;
        add.s32 %r0, %r1, %r2;
    """)


def test_shuffles():
    assert shuffled("bfly", 5, 31) == [100 + (lane ^ 5) for lane in LANES]
    assert shuffled("up", 3, 0) == [97 + lane if lane >= 3 else lane for lane in LANES]
    assert shuffled("down", 4, 31) == [104 + lane if lane < 28 else lane for lane in LANES]
    assert shuffled("idx", 7, 31) == [107] * 32
    # Segments of 8 lanes: the mask of the segment is in bits 8 to 12.
    segment = 0x1800
    assert shuffled("idx", 3, segment | 31) == [100 + (lane & ~7) + 3 for lane in LANES]
    assert shuffled("up", 2, segment) == [98 + lane if lane % 8 >= 2 else lane for lane in LANES]
    assert shuffled("down", 2, segment | 7) == [102 + lane if lane % 8 < 6 else lane for lane in LANES]


def test_votes():
    def voted(mode, low, negation="", result="%p1"):
        tail = "" if result == "%r0" else "selp.b32 %r0, 1, 0, %p1;"
        kind = "b32" if mode == "ballot" else "pred"
        return of_each_thread(
            f"setp.lt.u32 %p0, %tid, {low}; vote.sync.{mode}.{kind} {result}, {negation}%p0, -1; {tail}"
        )

    assert voted("all", 32) == [1] * 32
    assert voted("all", 31) == [0] * 32
    assert voted("any", 1) == [1] * 32
    assert voted("any", 0) == [0] * 32
    assert voted("any", 32, "!") == [0] * 32
    assert voted("uni", 0) == voted("uni", 32) == [1] * 32
    assert voted("uni", 5) == [0] * 32
    assert voted("ballot", 7, result="%r0") == [0x7F] * 32


def test_reductions_and_elections():
    def reduced(kind):
        return of_each_thread(f"sub.s32 %r1, %tid, 3; redux.sync.{kind} %r0, %r1, -1;")[0]

    assert reduced("add.s32") == sum(LANES) - 96
    assert reduced("min.s32") == 2**32 - 3
    assert reduced("min.u32") == 0
    assert reduced("max.s32") == 28
    assert reduced("max.u32") == 2**32 - 1
    assert reduced("or.b32") == 2**32 - 1
    assert reduced("and.b32") == 0
    assert of_each_thread("elect.sync %r1|%p0, -1; selp.b32 %r0, 7, %r1, %p0;") == [7] + [0] * 31


def test_lanes_that_part_meet_again():
    # An if within a loop whose length is the lane's: all lanes take part in the shuffle after it.
    body = """
        mov.u32 %r0, 0;
        mov.u32 %r1, 0;
        LOOP:
        setp.ge.u32 %p0, %r1, %tid;
        @%p0 bra DONE;
        and.b32 %r2, %r1, 1;
        setp.eq.b32 %p1, %r2, 0;
        @!%p1 bra ODD;
        add.s32 %r0, %r0, 10;
        bra NEXT;
        ODD:
        add.s32 %r0, %r0, 1;
        NEXT:
        add.s32 %r1, %r1, 1;
        bra LOOP;
        DONE:
        activemask.b32 %r3;
        shfl.sync.bfly.b32 %r4, %r0, 1, 31, -1;
        setp.ne.b32 %p2, %r3, -1;
        @%p2 trap;
        mov.b32 %r0, %r4;
    """
    sums = [(lane + 1) // 2 * 10 + lane // 2 for lane in LANES]
    assert of_each_thread(body) == [sums[lane ^ 1] for lane in LANES]


def test_branches_by_index():
    body = """
        and.b32 %r1, %tid, 3;
        TABLE: .branchtargets A, B, C, A;
        brx.idx %r1, TABLE;
        A: mov.u32 %r0, 1; bra END;
        B: mov.u32 %r0, 2; bra END;
        C: mov.u32 %r0, 3;
        END: activemask.b32 %r2;
        setp.ne.b32 %p0, %r2, -1;
        @%p0 trap;
    """
    assert of_each_thread(body) == [(1, 2, 3, 1)[lane & 3] for lane in LANES]
    with pytest.raises(Fault, match="idx 3 of 3 targets"):
        of_each_thread(body.replace("A, B, C, A", "A, B, C"))


def test_lanes_that_end_early_are_not_waited_for():
    body = """
        mov.u32 %r0, 5;
        setp.lt.u32 %p0, %tid, 8;
        mul.wide.u32 %rd0, %tid, 4;
        add.s64 %rd0, %out, %rd0;
        @%p0 st.global.b32 [%rd0], 9;
        @%p0 ret;
        bar.sync 0;
        activemask.b32 %r0;
    """
    assert of_each_thread(body) == [9] * 8 + [0xFFFFFF00] * 24


def test_special_registers():
    body = """
        mov.u32 %r1, %laneid; mov.u32 %r2, %warpid; mov.u32 %r3, %ntid.x; mov.u32 %r4, %lanemask_lt;
        popc.b32 %r4, %r4;
        shl.b32 %r2, %r2, 8; shl.b32 %r3, %r3, 16;
        sub.s32 %r4, %r4, %r1;
        add.s32 %r0, %r1, %r2; add.s32 %r0, %r0, %r3; add.s32 %r0, %r0, %r4;
    """
    assert of_each_thread(body, threads=96) == [t % 32 + (t // 32 << 8) + (96 << 16) for t in range(96)]


ATOMICS = {
    "add.u32": (5, sum(LANES) + 5),
    "exch.b32": (5, 31),
    "min.s32": (7, 0),
    "max.u32": (7, 31),
    "and.b32": (0xFF, 0),
    "or.b32": (0x40, 0x5F),
    "xor.b32": (0x40, 0x40),
}


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("kind", ATOMICS)
def test_atomics(kind, space):
    start, end = ATOMICS[kind]
    address = "%in" if space == "global" else "%r10"
    body = f"""
        mov.u32 %r10, memory;
        setp.eq.b32 %p0, %tid, 0;
        @%p0 st.shared.b32 [%r10], {start};
        bar.sync 0;
        atom.{space}.{kind} %r1, [{address}], %tid;
        bar.sync 0;
        ld.{space}.b32 %r0, [{address}];
    """
    assert of_each_thread(body, source=[start]) == [end] * 32


def test_atomic_results():
    # Each lane gets what was there before its own addition; floats are added as such; of all lanes one swaps.
    before = of_each_thread("atom.global.add.u32 %r0, [%in], 2;", source=[100])
    assert sorted(before) == [100 + 2 * lane for lane in LANES]
    one = 0x3F800000
    body = "red.global.add.f32 [%in], 0f3F800000; bar.sync 0; ld.global.b32 %r0, [%in];"
    assert of_each_thread(body, source=[one])[0] == 0x42040000  # 33.0
    swapped = of_each_thread("add.s32 %r1, %tid, 1; atom.global.cas.b32 %r0, [%in], 0, %r1;", source=[0])
    assert swapped == [0] + [1] * 31


def test_generic_addresses():
    body = """
        mov.u64 %rd0, memory;
        cvta.shared.u64 %rd1, %rd0;
        mul.wide.u32 %rd2, %tid, 4;
        add.s64 %rd1, %rd1, %rd2;
        st.b32 [%rd1], %tid;
        cvta.to.shared.u64 %rd3, %rd1;
        ld.shared.b32 %r0, [%rd3];
    """
    assert of_each_thread(body) == list(LANES)
