"""The Triton kernels, compiled for devices that are not here: what they cost and that they stay within limits.

Every entry of kernels/tuning/tiles.json is compiled as its launchers ask for it, by the installed Triton: to hold the
table to another release, `pip install --no-deps --target FOLDER triton==3.6.0` and run these tests with FOLDER first on
PYTHONPATH. The figures are written to build/aot/*.json, a file for each release, device and kind of product;
`python -m ssl_fast.kernels.tuning.ahead_of_time` prints them, and sums them up.
"""

import itertools
import json
import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from bench import tune
from ssl_fast import checks
from ssl_fast.kernels import ema, enqueue, info_nce, nt_xent, pair_similarity, similarity_lse, similarity_softplus
from ssl_fast.kernels.tuning import ahead_of_time, table

# The longest compilations. Those of sm_120, whose code is made as that of sm_80, and of the less used types of sm_100
# are left to `make test-all`.
every_device_and_kind = pytest.mark.parametrize(
    ("device", "kind"),
    [
        pytest.param(
            device,
            kind,
            marks=pytest.mark.slow
            if device == "sm_120" or (device == "sm_100" and kind in ("tf32", "float64"))
            else (),
        )
        for device in table.SHARED_LIMIT
        for kind in tune.KINDS
    ],
)
every_row = pytest.mark.parametrize("device", table.SHARED_LIMIT)  # each on the GPU that it was made for
# GPUs that take the row of a relative. What needs most shared memory is compiled in each run, the rest by
# `make test-all`.
RELATIVES = [name for name in ahead_of_time.TARGETS if name not in table.rows()]
MOST_SHARED = [("half", "online_softmax", 256), ("tf32", "weighted_rows", 256)]

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 compiles nothing"),
]
REPORTS = ahead_of_time.REPORTS
# What the matrix units' instructions are called. float32 without TF32 has none but on gfx942.
MATRIX_UNITS = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC", "sm_120": "HMMA", "gfx942": "v_mfma"}


@pytest.fixture(autouse=True)
def compile_afresh(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def figures(compiled, device, kind, width, tile, warps) -> dict:
    """A line of a report."""
    return {
        "triton": triton.__version__, "device": device, "kind": kind, "width": width,
        "kernel": compiled.kernel.strip("_").removesuffix("_kernel"), "tile": tile,
        "registers": compiled.registers, "local": compiled.local_bytes, "shared": compiled.shared_bytes,
        "programs": compiled.programs(warps, device), "products": len(compiled.products),
    }  # fmt: skip


def write_report(name: str, rows: list[dict]) -> None:
    name = f"triton-{triton.__version__}-{name}"
    REPORTS.mkdir(parents=True, exist_ok=True)
    part = REPORTS / f"{name}.part"
    part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    os.replace(part, REPORTS / f"{name}.json")


RELEASE = ".".join(triton.__version__.split(".")[:2])
# What no tile avoids: bytes at most, by release of Triton, device, kind and kernel. The products of the positives, one
# tile for each block of rows, are few beside the others.
SPILLED = {("3.6", "sm_90", "float64", "_pair_dots_kernel"): 48}


def check_limits(compiled, device, spilled=0):
    what = f"{compiled.kernel} on {device} by Triton {triton.__version__}"
    assert compiled.local_bytes <= spilled, f"{what} spills {compiled.local_bytes} bytes"
    assert compiled.shared_bytes <= ahead_of_time.SHARED_LIMIT[device], what


def entries(device):
    """The tiles of the table that differ, with one width that uses each."""
    for kind, kernels in table.rows()[device].items():
        for kernel, widths in kernels.items():
            for width, tile in widths.items():
                yield kind, kernel, int(width), table.Tile(*tile)


@pytest.mark.timeout(1500)
@every_device_and_kind
def test_every_tile_of_the_table(device, kind):
    report = []
    for of_kind, kernel, width, tile in entries(device):
        if of_kind != kind:
            continue
        for compiled in tune.compiled(kernel, kind, width, tile, device):
            check_limits(compiled, device, SPILLED.get((RELEASE, device, kind, compiled.kernel), 0))
            units = [name for name in compiled.products if name.startswith(MATRIX_UNITS[device])]
            if kind in ("half", "tf32"):
                assert units, f"{kernel}: no instruction of the matrix units"
            assert max(compiled.load_bits) == 128, f"{kernel}: loads of {set(compiled.load_bits)} bits"
            report.append(figures(compiled, device, kind, width, "x".join(map(str, tile)), tile.warps))
    write_report(f"{device}-{kind}", report)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("kind", "kernel", "width"),
    [
        pytest.param(*entry, marks=() if entry in MOST_SHARED else pytest.mark.slow)
        for entry in itertools.product(tune.KINDS, tune.KERNELS, tune.WIDTHS)
    ],
)
@pytest.mark.parametrize("device", RELATIVES)
def test_a_relatives_row_fits(device, kind, kernel, width):
    """It compiles, and its blocks have the shared memory."""
    forms = slice(1) if (kind, kernel, width) in MOST_SHARED else slice(None)
    for compiled in tune.compiled(kernel, kind, width, None, device, forms):
        assert compiled.shared_bytes <= ahead_of_time.SHARED_LIMIT[device], compiled.kernel


# What is still spilled of rows of width 512: bytes by release of Triton, device, kind and kernel.
SPILLED_WHERE_WIDE = {
    ("3.6", "sm_120", "half"): {"_loss_kernel": 8},
    ("3.6", "sm_120", "tf32"): {"_loss_kernel": 8},
    ("3.6", "sm_120", "ieee"): {"_loss_kernel": 8},
    ("3.8", "sm_80", "float64"): {"_loss_kernel": 8},
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", tune.KINDS)
@every_row
def test_wide_rows(device, kind):
    """Widths whose steps are pipelined, and whose gradients take chunks."""
    tune.set_kind(kind)
    names, spilled = set(), {}
    for kernel in ("symmetric_tiles", "online_softmax"):
        for call in tune.calls(kernel, kind, 512)[1:2]:
            for launch in ahead_of_time.launches(call, device):
                name = launch.kernel.fn.__name__
                if name in names or name in ("_prepare_kernel", "_sum_kernel"):
                    continue
                names.add(name)
                compiled = ahead_of_time.compiled(launch, device)
                assert compiled.shared_bytes <= ahead_of_time.SHARED_LIMIT[device], name
                if compiled.local_bytes:
                    spilled[name] = compiled.local_bytes
    assert {"_symmetric_tiles_kernel", "_online_softmax_kernel", "_pair_dots_kernel", "_weights_kernel"} <= names
    assert spilled == SPILLED_WHERE_WIDE.get((RELEASE, device, kind), {}), f"by Triton {triton.__version__}"


def similarity_calls(kind, width, count=1024):
    """Functions that launch the kernels in the forms that only the similarity operators have."""
    dtype = tune.KINDS[kind]
    wide = torch.float64 if kind == "float64" else torch.float32
    a, b = torch.zeros(2, count, width, dtype=dtype).unbind()
    keys = torch.zeros(4 * count, width, dtype=dtype)
    ids, key_ids = torch.zeros(count, dtype=torch.int64), torch.zeros(4 * count, dtype=torch.int64)
    g, bias, learnt = torch.zeros(count, dtype=wide), torch.zeros(()), torch.full((), 10.0, dtype=torch.float64)
    sums, both_sums = torch.zeros(3, count, dtype=wide), torch.zeros(3, 2 * count, dtype=wide)
    one_way, both_ways, symmetric = (a, keys, ids, key_ids), (a, b, ids, ids), (a, None, ids, None)
    lse, lse_backward = similarity_lse.similarity_lse, similarity_lse.similarity_lse_backward
    softplus = similarity_softplus.similarity_softplus, similarity_softplus.similarity_softplus_backward
    return [
        lambda: lse(*symmetric, 3, True, True, False, 1.0, learnt, g),
        lambda: lse(*both_ways, 2, True, True, True, 1.0, learnt, g),
        lambda: lse(a, b, None, None, 0, True, True, True, 10.0, None, None),
        lambda: lse(*one_way, 2, True, False, False, 10.0, None, None),
        lambda: lse_backward(g, None, *symmetric, 3, True, True, 1.0, learnt, sums, True, False),
        lambda: lse_backward(g, g, *both_ways, 2, True, True, 1.0, learnt, both_sums, True, True),
        lambda: lse_backward(g, None, *one_way, 2, True, True, 10.0, None, sums, True, True),
        lambda: softplus[0](a, b, True, 10.0, None, bias, g),
        lambda: softplus[1](g, a, b, True, 10.0, None, bias, sums[:2].contiguous(), sums[:0], True, True),
    ]


@pytest.mark.timeout(1500)
@every_device_and_kind
def test_similarity_forms_spill_nothing(device, kind):
    """Ids, two sides and sigmoids, with the tiles of the table."""
    tune.set_kind(kind)
    found = {}
    for call in similarity_calls(kind, 128):
        for launch in ahead_of_time.launches(call, device):
            if launch.kernel.fn.__name__ in (*tune.KERNELS.values(), "_lse_kernel"):
                given = tuple(x is None for x in launch.arguments)
                found[launch.kernel.fn.__name__, given, str(launch.options)] = launch
    assert {name for name, *_ in found} == {*tune.KERNELS.values(), "_lse_kernel"}
    report = []
    for launch in found.values():
        compiled = ahead_of_time.compiled(launch, device)
        check_limits(compiled, device)
        options = launch.options
        tile = [options[key] for key in ("BLOCK_M", "BLOCK_N", "BLOCK_D", "num_warps", "num_stages") if key in options]
        report.append(figures(compiled, device, kind, 128, "x".join(map(str, tile)), options["num_warps"]))
    write_report(f"{device}-{kind}-similarity", report)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stats", [False, True], ids=["loss", "statistics"])
def test_large_batches_spill_nothing(stats):
    """The most tiles that a program sums, and no kernel of their own."""
    tune.set_kind("half")
    found = []
    for count in (1024, 65536):
        z = torch.empty(count, 128, dtype=torch.bfloat16)
        launches = ahead_of_time.launches(lambda z=z: nt_xent.nt_xent(z, z, 10.0, None, 1, stats), "sm_90")
        (launch,) = (each for each in launches if each.kernel.fn.__name__ == "_symmetric_tiles_kernel")
        found.append(ahead_of_time.compiled(launch, "sm_90"))
        check_limits(found[-1], "sm_90")
    small, large = found
    assert small == large


@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", ["sm_90", "gfx942"])
def test_sizes_of_one(device):
    """Triton takes an integer argument that is 1 for a constant of the kernel, another type."""
    z, keys, one = torch.ones(1, 1), torch.ones(1, 1), torch.ones(())
    sums, means = torch.zeros(3, 2), torch.zeros(1, 1)
    of_one, id_ = sums[:, :1].contiguous(), torch.zeros(1, dtype=torch.int64)
    for call in (
        lambda: nt_xent.nt_xent(z, z, 10.0, None, 1, True),
        lambda: nt_xent.nt_xent_backward(one, z, z, 1.0, one, 1, sums),
        lambda: info_nce.info_nce(z, z, keys, False, 10.0, None, 1, True, True),
        lambda: info_nce.info_nce_backward(one, z, z, keys, False, True, 1.0, one, 1, of_one, means, True),
        lambda: info_nce.info_nce(z, z, keys[None], True, 10.0, None, 1, True, True),
        lambda: info_nce.info_nce_backward(one, z, z, keys[None], False, True, 1.0, one, 1, of_one, means, True),
        lambda: similarity_lse.similarity_lse(z, None, id_, None, 3, True, True, False, 10.0, None, one[None]),
        lambda: similarity_lse.similarity_lse(z, keys, id_, id_, 2, True, False, True, 10.0, None, one[None]),
        lambda: similarity_lse.similarity_lse_backward(
            one[None], one[None], z, keys, id_, id_, 2, True, False, 1.0, one, sums, True, True
        ),
        lambda: pair_similarity.pair_similarity_backward(one[None], z, keys, True, False),
        lambda: similarity_softplus.similarity_softplus(z, keys, True, 10.0, None, one, one[None]),
        lambda: similarity_softplus.similarity_softplus_backward(
            one[None], z, keys, True, 1.0, one, one, sums[:2, :1].contiguous(), one[None], True, True
        ),
        lambda: enqueue.enqueue_(z, torch.zeros(1, dtype=torch.int64), keys, True),
        lambda: ema.ema_update_([z], [keys], 0.9),
    ):
        for launch in ahead_of_time.launches(call, device):
            ahead_of_time.compiled(launch, device)


# The O(N D) kernels have no tiles to choose: that they compile everywhere, and what they must not do.


def small_launches(device, dtype):
    """One of each kernel but the three of the table, in their common forms."""
    found = {}
    for kernel in tune.KERNELS:
        tune.set_kind("ieee")
        kind = {torch.float64: "float64", torch.float32: "ieee"}.get(dtype, "half")
        for call in tune.calls(kernel, kind, 128):
            for launch in ahead_of_time.launches(call, device):
                if launch.kernel.fn.__name__ not in tune.KERNELS.values():
                    given = tuple(x is None for x in launch.arguments)
                    found[launch.kernel.fn.__name__, given] = launch
    return found


# What is spilled by kernels without tiles, in the same way: of 48 registers, 8 bytes around a float64 routine.
SPILLED_OF_SMALL = {("3.6", "sm_120"): {"_loss_kernel": 8}}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_row
def test_small_kernels_spill_nothing(device, dtype):
    spilled = dict.fromkeys(SPILLED_OF_SMALL.get((RELEASE, device), {}), 0)
    for launch in small_launches(device, dtype).values():
        compiled = ahead_of_time.compiled(launch, device)
        if compiled.kernel in spilled:
            spilled[compiled.kernel] = max(spilled[compiled.kernel], compiled.local_bytes)
        check_limits(compiled, device, spilled.get(compiled.kernel, 0))
    assert spilled == SPILLED_OF_SMALL.get((RELEASE, device), {}), f"by Triton {triton.__version__}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("paired", [torch.float32, torch.bfloat16], ids=str)
@every_row
def test_paired_negatives_are_read_128_bits_at_a_time(device, paired):
    launches = ahead_of_time.launches(tune.paired_call(paired, 128), device)
    launches = [launch for launch in launches if "paired" in launch.kernel.fn.__name__]
    assert len(launches) == 2
    for launch in launches:
        compiled = ahead_of_time.compiled(launch, device)
        check_limits(compiled, device)
        assert max(compiled.load_bits) >= (64 if device == "gfx942" else 128)


def enqueue_compiled(device, queue, keys, normalize=False):
    pointer = torch.zeros(1, dtype=torch.int64)
    launches = ahead_of_time.launches(lambda: enqueue.enqueue_(queue, pointer, keys, normalize), device)
    assert len(launches) == 1
    return ahead_of_time.compiled(launches[0], device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_row
def test_enqueue_moves_rows_128_bits_at_a_time(device, dtype):
    compiled = enqueue_compiled(device, torch.zeros(4096, 128, dtype=dtype), torch.zeros(256, 128, dtype=dtype))
    check_limits(compiled, device)
    # 1024 elements over four warps; on gfx942, whose warps are twice as wide, a thread has four elements.
    width = 64 if device == "gfx942" and dtype == torch.bfloat16 else 128
    assert set(compiled.load_bits) == {width}
    assert set(compiled.store_bits) == {width}
    assert compiled.registers <= 40  # so 1536 threads fit on a multiprocessor of 65536 registers


@every_row
def test_enqueue_normalises_in_registers(device):
    check_limits(enqueue_compiled(device, torch.zeros(4096, 128), torch.zeros(256, 128), True), device)


@every_row
def test_enqueue_odd_rows_that_are_cast(device):
    """The most work an element: double to half, D not a multiple of anything, both tensors strided."""
    queue = torch.zeros(129, 4096, dtype=torch.float16).T
    keys = torch.zeros(64, 3 * 129, dtype=torch.float64)[:, ::3]
    compiled = enqueue_compiled(device, queue, keys)
    check_limits(compiled, device)
    # The mask and the strides forbid wide accesses: what is seen here shows that widths are read right.
    assert set(compiled.load_bits) == {64}
    assert set(compiled.store_bits) == {16}


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
@every_row
def test_momentum_update_moves_128_bits_at_a_time(device, dtypes):
    target, source = ([torch.zeros(n, dtype=dtype) for n in (4096, 77)] for dtype in dtypes)
    (launch,) = ahead_of_time.launches(lambda: ema.ema_update_(target, source, 0.99), device)
    compiled = ahead_of_time.compiled(launch, device)
    check_limits(compiled, device)
    assert max(compiled.load_bits) == max(compiled.store_bits) == 128


@every_row
def test_momentum_update_of_every_pair_of_types(device):
    pairs = [(t, s) for t in checks.FLOATS for s in checks.FLOATS]
    target, source = ([torch.zeros(4096, dtype=pair[i]) for pair in pairs] for i in (0, 1))
    for side in (target, source):
        side.append(torch.zeros(4096, dtype=torch.int64))
    launches = ahead_of_time.launches(lambda: ema.ema_update_(target, source, 0.99), device)
    assert len(launches) == 2  # float64 apart
    for launch in launches:
        check_limits(ahead_of_time.compiled(launch, device), device)
