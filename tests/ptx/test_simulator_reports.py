"""Every kind of report and fault: a snippet that has the fault, and the same without it, in which nothing is found."""

import re
from typing import NamedTuple

import numpy as np
import pytest

from .requirements import needs_simulator
from .simulator import Fault, PtxError, ReportKind, load
from .snippets import launch, module

pytestmark = needs_simulator

ADDRESSES = """
    mov.u32 %r1, memory;
    mul.lo.s32 %r2, %tid, 4;
    add.s32 %r2, %r1, %r2;          // the thread's own place in shared memory
    mul.wide.u32 %rd1, %tid, 4;
    add.s64 %rd2, %in, %rd1;        // ... in the input
    add.s64 %rd3, %out, %rd1;       // ... in the output
    xor.b32 %r3, %tid, 32;
    mad.lo.s32 %r3, %r3, 4, %r1;    // the place of a thread of another warp
    xor.b32 %r4, %tid, 1;
    mad.lo.s32 %r4, %r4, 4, %r1;    // ... of another lane
    mov.u32 %r5, %ctaid.x;
    mul.wide.u32 %rd4, %r5, 256;
    add.s64 %rd4, %out, %rd4;
    add.s64 %rd5, %rd4, %rd1;       // the thread's place in the output of its block
    setp.eq.u32 %p0, %tid, 0;
    setp.lt.u32 %p2, %tid, 32;      // the first warp
"""


class Case(NamedTuple):
    """`{}` in the text is where the fault is: `faulty` or `right` is put there."""

    text: str
    faulty: str
    right: str
    threads: int = 64
    blocks: int = 1
    target: str = "sm_80"

    def run(self, text: str, **how):
        source, result = np.arange(256, dtype=np.uint32), np.zeros(256, np.uint32)
        code = module(ADDRESSES + self.text.replace("{}", text), self.threads, 4096, self.target)
        return launch(code, source, result, (self.blocks,), **how)


BARRIER, WARP_BARRIER = "bar.sync 0;", "bar.warp.sync -1;"
COPY = "cp.async.ca.shared.global [%r2], [%rd2], 4;"
REPORTS = {
    ReportKind.UNINITIALISED: Case("{} ld.shared.b32 %r0, [%r2];", "", "st.shared.b32 [%r2], 1;"),
    ReportKind.READ_AFTER_WRITE: Case(
        "st.shared.b32 [%r2], 0; bar.sync 0; @%p2 st.shared.b32 [%r2], %tid; {} @!%p2 ld.shared.b32 %r0, [%r3];",
        "",
        BARRIER,
    ),
    ReportKind.WRITE_AFTER_READ: Case(
        "st.shared.b32 [%r2], 0; bar.sync 0; @%p2 ld.shared.b32 %r0, [%r2]; {} @!%p2 st.shared.b32 [%r3], %tid;",
        "",
        BARRIER,
    ),
    ReportKind.WRITE_AFTER_WRITE: Case("st.shared.b32 [%r2], 1; {} st.shared.b32 [%r3], 2;", "", BARRIER),
    ReportKind.IN_FLIGHT: Case(
        COPY + "cp.async.commit_group; {} ld.shared.b32 %r0, [%r2]; cp.async.wait_group 0;",
        "cp.async.wait_group 1;",
        "cp.async.wait_group 0;",
    ),
    ReportKind.LANE_READ_AFTER_WRITE: Case("st.shared.b32 [%r2], %tid; {} ld.shared.b32 %r0, [%r4];", "", WARP_BARRIER),
    ReportKind.LANE_WRITE_AFTER_READ: Case(
        "st.shared.b32 [%r2], 1; bar.sync 0; ld.shared.b32 %r0, [%r2]; {} st.shared.b32 [%r4], %tid;",
        "",
        WARP_BARRIER,
    ),
    ReportKind.LANE_WRITE_AFTER_WRITE: Case("st.shared.b32 [%r2], 1; {} st.shared.b32 [%r4], 2;", "", WARP_BARRIER),
    ReportKind.GLOBAL_BETWEEN_BLOCKS: Case("{}", "st.global.b32 [%rd3], %r5;", "st.global.b32 [%rd5], %r5;", 64, 2),
    ReportKind.GLOBAL_BETWEEN_WARPS: Case(
        "st.global.b32 [%rd3], %tid; {} xor.b32 %r6, %tid, 32; mul.wide.u32 %rd6, %r6, 4; add.s64 %rd6, %out, %rd6;"
        "ld.global.b32 %r0, [%rd6];",
        "",
        BARRIER,
    ),
    ReportKind.LANES_DISAGREE: Case("st.shared.b32 [%r1], {};", "%tid", "7", 32),
    ReportKind.NEVER_WAITED: Case(COPY + "cp.async.commit_group; {}", "", "cp.async.wait_all;"),
}
# A write that wgmma, whose accesses go through the asynchronous proxy, may not see yet.
PRODUCT = """
    mad.lo.s32 %r6, %tid, 32, %r1;
    st.shared.v4.b32 [%r6], {0, 0, 0, 0};
    st.shared.v4.b32 [%r6+16], {0, 0, 0, 0};
    {}
    bar.sync 0;
    mov.b64 %rd7, 0x0000000800080040;
    setp.ne.b32 %p1, %r1, %r1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1, %f2, %f3}, %rd7, %rd7, %p1, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
"""
REPORTS[ReportKind.UNFENCED_PROXY] = Case(PRODUCT, "", "fence.proxy.async.shared::cta;", threads=128, target="sm_90a")


def test_every_kind_has_a_case():
    assert set(REPORTS) == set(ReportKind)


@pytest.mark.parametrize("kind", ReportKind, ids=lambda kind: kind.name.lower())
def test_reports(kind):
    case = REPORTS[kind]
    assert {report.kind for report in case.run(case.faulty).reports} == {kind}
    assert case.run(case.right).reports == []
    # In another order a race is found from its other side: a read after a write may be a write after a read.
    for seed in (1, 2, 3):
        assert case.run(case.faulty, seed=seed, interleaved=case.blocks).reports
        assert case.run(case.right, seed=seed, interleaved=case.blocks).reports == []


def test_a_report_names_both_places():
    case = REPORTS[ReportKind.READ_AFTER_WRITE]
    (report,) = case.run("").reports
    assert report.place.text == "@!%p2 ld.shared.b32 %r0, [%r3]"
    assert report.other.text == "@%p2 st.shared.b32 [%r2], %tid"
    assert report.threads == (32, 0)
    assert report.count == 4 * 32  # bytes of a warp
    assert f"PTX line {report.place.line}" in str(report)
    text = module(ADDRESSES + case.text.replace("{}", "")).splitlines()
    assert report.place.text in text[report.place.line - 1]


def test_races_in_global_memory_may_be_left_alone():
    case = REPORTS[ReportKind.GLOBAL_BETWEEN_BLOCKS]
    assert case.run(case.faulty, races=False).reports == []


def test_the_winning_lane_may_vary():
    # Sixteen stores of the lane's number: without the option the last lane wins all of them.
    stores = " ".join(f"st.global.b32 [%out+{4 * i}], %tid;" for i in range(16))

    def winners(**how):
        result = np.zeros(16, np.uint32)
        launch(module(stores), np.zeros(1, np.uint32), result, **how)
        return set(result.tolist())

    assert winners() == {31}
    assert winners(vary_winning_lane=True) == {0, 31}


def test_the_same_seed_runs_the_same_way():
    # Each block takes a number; the order in which they come depends on the seed, and on nothing else.
    body = """
        setp.eq.u32 %p0, %tid, 0;
        @%p0 atom.global.add.u32 %r1, [%in], 1;
        mov.u32 %r5, %ctaid.x;
        mul.wide.u32 %rd4, %r5, 4;
        add.s64 %rd4, %out, %rd4;
        @%p0 st.global.b32 [%rd4], %r1;
    """

    def order(seed):
        result = np.zeros(20, np.uint32)
        launch(module(body), np.zeros(1, np.uint32), result, (20,), seed=seed, interleaved=4)
        return result.tolist()

    assert order(3) == order(3)
    assert sorted(order(3)) == list(range(20))
    assert len({tuple(order(seed)) for seed in range(5)}) == 5


FAULTS = {
    "out of bounds: global read": Case("ld.global.b32 %r0, [%rd2+{}];", "1024", "0"),
    "out of bounds: global write": Case("st.global.b32 [%out+{}], 1;", "-4", "0", 1),
    "out of bounds: global atomic": Case("red.global.add.u32 [%out+{}], 1;", "1024", "0"),
    "out of bounds: shared access": Case("st.shared.b32 [%r2+{}], 1;", "4096", "0"),
    "misaligned global access": Case("ld.global.b64 %rd0, [%in+{}];", "4", "8"),
    "misaligned shared access": Case("st.shared.b32 [%r1+{}], 1;", "2", "4"),
    "misaligned source of cp.async": Case(
        "@%p0 cp.async.ca.shared.global [%r1], [%in+{}], 8; cp.async.wait_all;", "4", "8", 32
    ),
    "undefined predicate": Case("{} @%p1 bra END; END:", "", "setp.eq.u32 %p1, %tid, %tid;"),
    "a barrier in divergent code": Case("{} bar.sync 0; END:", "@%p0 bra END;", ""),
    "a barrier that other warps never reach": Case(
        "setp.lt.u32 %p1, %tid, 32; {} bar.sync 0;", "@%p1 ret;", "@%p1 bra NEXT; NEXT:"
    ),
    "warps wait at different barriers": Case(
        "setp.lt.u32 %p1, %tid, 32; @%p1 bra OTHER; bar.sync 0; bra END; OTHER: bar.sync {}; END:", "1", "0"
    ),
    "a barrier of 32 of the threads": Case("bar.sync 0, {};", "32", "64"),
    "bra.uni of lanes that differ": Case("@%p0 bra{} END; END:", ".uni", ""),
    "lanes missing": Case("@%p0 bra END; shfl.sync.idx.b32 %r0, %tid, 1, 31, {}; END:", "-1", "0xfffffffe", 32),
    "which does not take part": Case(
        "@%p0 bra END; shfl.sync.idx.b32 %r0, %tid, {}, 31, 0xfffffffe; END:", "0", "1", 32
    ),
    "an aligned instruction with lanes missing": Case(
        "{} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r0}, [%r1]; END:",
        "@%p0 bra END;",
        "mul.lo.s32 %r6, %tid, 8; add.s32 %r6, %r1, %r6; st.shared.b64 [%r6], 0; bar.warp.sync -1;",
        32,
    ),
    "trap": Case("setp.lt.u32 %p1, %tid, {}; @%p1 trap;", "1", "0"),
    "more than 100000 instructions": Case("LOOP: {} bra LOOP; END:", "", "bra END;"),
    "cvta.to of an address in another space": Case("{} cvta.to.shared.u64 %rd0, %rd0;", "mov.b64 %rd0, %in;",
        "mov.u64 %rd0, memory; cvta.shared.u64 %rd0, %rd0;"),
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_faults(message):
    case = FAULTS[message]
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        case.run(case.faulty, limit=100_000)
    assert caught.value.place.line > 0
    assert case.run(case.right, limit=100_000).reports == []


def test_wgmma_needs_its_fence():
    case = REPORTS[ReportKind.UNFENCED_PROXY]
    without = case._replace(text=case.text.replace("wgmma.fence.sync.aligned;", ""))
    with pytest.raises(Fault, match=re.escape("wgmma.mma_async without wgmma.fence")):
        without.run(case.right)


UNKNOWN = [
    "frobnicate.b32 %r0, %r1;",
    "add.sat.s32 %r0, %r1, %r2;",
    "add.rz.f32 %f0, %f1, %f2;",
    "add.s33 %r0, %r1, %r2;",
    "add.s32 %r0, %r1;",
    "add.s32 %r0, %r1, %nothing;",
    "mul.s32 %r0, %r1, %r2;",
    "ex2.approx.f16 %h0, %h1;",
    "cvt.rs.f16x2.f32 %r0, %f0, %f1, %r1;",
    "ld.shared::cluster.b32 %r0, [%r1];",
    "ld.global.v2.b32 {%r0, %r1, %r2}, [%in];",
    "ld.global.b32 %r0, [memory];",
    "bar.arrive 0, 64;",
    "bar.red.popc.u32 %r0, 0, %p0;",
    "shfl.idx.b32 %r0, %r1, 0, 31;",
    "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r0, %r1, %r2, %r3}, {%r4, %r5}, {%r6}, {%r0, %r1, %r2, %r3};",
    "mma.sync.aligned.m16n8k8.row.row.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r4, %r5}, {%r6}, {%f0, %f1, %f2, %f3};",
    "cp.async.cg.shared.global [%r0], [%in], 4;",
    "cp.async.bulk.commit_group;",
    "mbarrier.init.shared.b64 [%r0], 1;",
    "atom.global.add.f16 %h0, [%in], %h1;",
    "call foo;",
    "bra NOWHERE;",
]  # fmt: skip


@pytest.mark.parametrize("statement", UNKNOWN, ids=lambda text: text.split()[0])
def test_what_is_not_known_raises(statement):
    text = module("mov.u32 %r0, 0;\n" + statement)
    with pytest.raises(PtxError) as caught:
        load(text)
    line = text.splitlines().index(statement) + 1
    assert f"snippet, PTX line {line}: {statement.rstrip(';')}: " in str(caught.value)


def test_a_kernel_is_found_by_its_name():
    two = module("") + module("trap;").replace("snippet", "other").replace(".shared .align 1024 .b8 memory[1024];", "")
    assert load(two).name == "snippet"
    assert load(two, "other").name == "other"
    assert load(two, "other") is load(two, "other")
