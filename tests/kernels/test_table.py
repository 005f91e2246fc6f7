"""Which row of the tile table each GPU takes, from the properties that torch reports of it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import triton

from bench import tune
from ssl_fast.kernels.tuning import ahead_of_time, table
from ssl_fast.tools import doctor

KIB = 1 << 10


def nvidia(name: str, major: int, minor: int, optin: int, processors: int) -> SimpleNamespace:
    """As a torch for CUDA reports a GPU: its gcnArchName is the marketing name."""
    return SimpleNamespace(
        name=name, gcnArchName=name, major=major, minor=minor, shared_memory_per_block=48 * KIB,
        shared_memory_per_block_optin=optin * KIB, multi_processor_count=processors, total_memory=80 << 30,
    )  # fmt: skip


def amd(name: str, architecture: str, major: int, minor: int, processors: int) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, gcnArchName=architecture, major=major, minor=minor, shared_memory_per_block=64 * KIB,
        shared_memory_per_block_optin=0, multi_processor_count=processors, total_memory=64 << 30,
    )  # fmt: skip


# The properties, the architecture, the row, and what the reason for another row says.
GPUS = [
    (nvidia("NVIDIA A100-SXM4-80GB", 8, 0, 163, 108), "sm_80", "sm_80", ""),
    (nvidia("NVIDIA A10", 8, 6, 99, 72), "sm_86", "sm_120", "sm_80's may need 163 KiB"),
    (nvidia("Orin", 8, 7, 163, 16), "sm_87", "sm_80", "no row for sm_87"),
    (nvidia("A later Orin", 8, 8, 163, 16), "sm_88", "sm_80", "no row for sm_88"),
    (nvidia("NVIDIA L4", 8, 9, 99, 58), "sm_89", "sm_120", "sm_80's may need 163 KiB"),
    (nvidia("NVIDIA GeForce RTX 4090", 8, 9, 99, 128), "sm_89", "sm_120", "where a block has 99"),
    (nvidia("NVIDIA H100 80GB HBM3", 9, 0, 227, 132), "sm_90", "sm_90", ""),
    (nvidia("NVIDIA H200", 9, 0, 227, 132), "sm_90", "sm_90", ""),
    (nvidia("NVIDIA B200", 10, 0, 227, 148), "sm_100", "sm_100", ""),
    (nvidia("NVIDIA B300 SXM6 AC", 10, 3, 227, 148), "sm_103", "sm_100", "no row for sm_103"),
    (nvidia("NVIDIA Thor", 11, 0, 227, 20), "sm_110", "sm_120", "no row for sm_110"),
    (nvidia("NVIDIA GeForce RTX 5090", 12, 0, 99, 170), "sm_120", "sm_120", ""),
    (nvidia("NVIDIA GB10", 12, 1, 99, 48), "sm_121", "sm_120", "no row for sm_121"),
    (nvidia("Tesla T4", 7, 5, 64, 40), "sm_75", "sm_120", "sm_120's may need 99 KiB"),
    (amd("AMD Instinct MI210", "gfx90a:sramecc+:xnack-", 9, 0, 104), "gfx90a", "gfx942", "no row for gfx90a"),
    (amd("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", 9, 4, 304), "gfx942", "gfx942", ""),
    (amd("AMD Radeon RX 7900 XTX", "gfx1100", 11, 0, 48), "gfx1100", "gfx942", "no row for gfx1100"),
]
every_gpu = pytest.mark.parametrize(
    ("properties", "architecture", "row", "reason"), [pytest.param(*gpu, id=gpu[0].name) for gpu in GPUS]
)


@pytest.fixture
def see(monkeypatch):
    """A function that puts GPUs of these properties into the machine and returns the first."""
    cached = (table.architecture, table.shared_limit, table.processors)

    def put(*gpus):
        monkeypatch.setattr(torch.version, "hip", "6.4" if gpus[0].gcnArchName.startswith("gfx") else None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda of: gpus[of.index if isinstance(of, torch.device) else of]
        )
        for function in cached:
            function.cache_clear()
        return torch.device("cuda", 0)

    yield put
    for function in cached:
        function.cache_clear()


@every_gpu
def test_the_row_of_each_gpu(see, properties, architecture, row, reason):
    device = see(properties)
    assert table.architecture(device) == architecture
    choice = table.choice(architecture, table.shared_limit(device))
    assert choice.row == row
    assert reason in choice.reason
    assert bool(choice.reason) == (row != architecture)
    assert table.processors(device) == properties.multi_processor_count
    for kind, kernels in table.rows()[row].items():
        for kernel, widths in kernels.items():
            for width, tile in widths.items():
                assert table.tile(kernel, device, kind, int(width)) == table.Tile(*tile)


@every_gpu
def test_the_row_fits_the_shared_memory(see, properties, architecture, row, reason):
    """All but GPUs with less than any row may need, which Triton does not name among those it runs on."""
    limit = table.shared_limit(see(properties))
    assert table.SHARED_LIMIT[row] <= limit or properties.major < 8


@every_gpu
def test_tf32_where_triton_compiles_it(see, properties, architecture, row, reason):
    """Of half queries beside a queue in float32, which take TF32 whatever the setting."""
    expected = "ieee" if architecture in ("gfx90a", "gfx1100") else "tf32"
    assert table.kind(torch.float32, torch.float16, see(properties)) == expected


def test_every_row_has_a_limit_and_every_family_rows():
    rows = set(table.rows()) - {"interpreter"}
    assert rows == set(table.SHARED_LIMIT)
    assert {row for family in table.FAMILIES.values() for row in family} == rows


def test_a_tuned_row_is_the_gpus_own(see, monkeypatch, tmp_path):
    """Written kind by kind: before its turn a kind keeps the tiles that served so far."""
    copy = tmp_path / "tiles.json"
    copy.write_text(table.TABLE.read_text())
    monkeypatch.setattr(table, "TABLE", copy)
    device = see(nvidia("NVIDIA L4", 8, 9, 99, 58))
    before = table.rows()
    try:
        entry = {kernel: {"256": [32, 32, 32, 4, 1]} for kernel in tune.KERNELS}
        tune.add(table.architecture(device), table.shared_limit(device), "half", entry)
        assert table.choice("sm_89", 99 * KIB) == ("sm_89", "")
        assert table.tile("online_softmax", device, "half", 128) == table.Tile(32, 32, 32, 4, 1)
        assert table.rows() == {**before, "sm_89": {**before["sm_120"], "half": entry}}
    finally:
        monkeypatch.undo()
        for function in (table.rows, table.choice, table.row_tile):
            function.cache_clear()


@pytest.mark.parametrize(
    ("version", "release"),
    [("3.5.1", "3.6"), ("3.6.0", "3.6"), ("3.7.1+rocm6.4", "3.6"), ("3.8.0", "3.8"), ("3.10.0", "3.9"), ("4.0", "3.9")],
)
def test_entries_of_a_release_of_triton(monkeypatch, version, release):
    monkeypatch.setattr(triton, "__version__", version)
    rows, releases = table.as_written()
    assert table.release(releases) == release
    table.rows.cache_clear()
    try:
        found = table.rows()
    finally:
        monkeypatch.undo()
        table.rows.cache_clear()
    for name, kinds in rows.items():
        for kind, kernels in kinds.items():
            for kernel, widths in kernels.items():
                changed = releases[release].get(name, {}).get(kind, {}).get(kernel, {})
                assert changed.keys() <= widths.keys()
                assert found[name][kind][kernel] == {**widths, **changed}


def test_ahead_of_time_takes_the_row_that_a_device_would():
    call = tune.calls("online_softmax", "half", 256)[0]
    tiles = {}
    for name in ahead_of_time.TARGETS:
        launch = next(x for x in ahead_of_time.launches(call, name) if x.kernel.fn.__name__ == "_online_softmax_kernel")
        options = launch.options
        tiles[name] = table.Tile(*(options[k] for k in ("BLOCK_M", "BLOCK_N", "BLOCK_D", "num_warps", "num_stages")))
    for name, tile in tiles.items():
        row = table.choice(name, ahead_of_time.SHARED_LIMIT[name]).row
        assert tile == table.row_tile("online_softmax", row, "half", 256)
    assert tiles["sm_86"] == tiles["sm_89"] == tiles["sm_121"] == tiles["sm_120"] != tiles["sm_80"]
    assert tiles["sm_103"] == tiles["sm_100"] != tiles["sm_120"]


def test_the_doctor_names_the_row_of_each_gpu(see, capsys):
    see(GPUS[6][0], GPUS[4][0])
    doctor._print_build()
    lines = capsys.readouterr().out.splitlines()
    h100, l4 = (next(i for i, line in enumerate(lines) if line.startswith(f"GPU {index} ")) for index in (0, 1))
    assert "NVIDIA H100 80GB HBM3, 9.0" in lines[h100]
    assert lines[h100 + 1].strip() == "sm_90, tiles of sm_90"
    assert lines[l4 + 1].strip().startswith("sm_89, tiles of sm_120: the table has no row for sm_89, sm_80's may need")


# A cudaDeviceProp in memory of its own, behind the class that torch reads it through. Where each field lies is found by
# reading a pattern in which every 32 bits hold their own index. Only the name, its first 256 bytes, is known to CUDA.
REAL = """
import ctypes, os
from unittest import mock
import torch
from ssl_fast.kernels.tuning import table

words = (ctypes.c_int32 * 2048)(*range(2048))
properties = torch._C._CudaDeviceProperties.__new__(torch._C._CudaDeviceProperties)
ctypes.c_void_p.from_address(id(properties) + 16).value = ctypes.addressof(words)
place = {
    field: getattr(properties, field) & 0xFFFFFFFF
    for field in ("major", "minor", "shared_memory_per_block", "shared_memory_per_block_optin")
}
ctypes.memset(words, 0, ctypes.sizeof(words))
ctypes.memmove(words, b"NVIDIA H100 80GB HBM3", 22)
h100 = {"major": 9, "minor": 0, "shared_memory_per_block": 48 << 10, "shared_memory_per_block_optin": 227 << 10}
for field, value in h100.items():
    words[place[field]] = value
    assert getattr(properties, field) == value, field
with mock.patch.object(torch.cuda, "get_device_properties", return_value=properties):
    device = torch.device("cuda", 0)
    print(properties.name, properties.gcnArchName, table.architecture(device), sep="|")
    print(table.choice(table.architecture(device), table.shared_limit(device)).row, flush=True)
os._exit(0)  # at an ordinary end the class would free this memory
"""


@pytest.mark.skipif(
    torch.version.cuda is None or not hasattr(torch._C, "_CudaDeviceProperties"), reason="torch is not for CUDA"
)
def test_torchs_own_properties():
    """The class itself: what it calls gcnArchName on CUDA is the marketing name."""
    answer = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True)
    if answer.returncode < 0:
        pytest.skip("pybind11 lays its objects out in another way")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split("\n")[:2] == ["NVIDIA H100 80GB HBM3|NVIDIA H100 80GB HBM3|sm_90", "sm_90"]
