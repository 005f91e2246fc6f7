"""csrc/common, what CUDA kernels are made of, run on the host: a launch thread by thread, against slow models."""

import bisect
import ctypes
import itertools

import host
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_fast import reference
from ssl_fast.formulas import rounding
from tests.helpers import oracle
from tests.helpers.strategies import DTYPES, LAYOUTS, embeddings, kinds, lay_out, seeds

pytestmark = pytest.mark.skipif(bool(host.why_not()), reason=host.why_not())

CHUNK, MOST_BLOCKS, SMALL, LARGE = 4096, 2**31 - 1, 124, 1020
# Around packs, chunks, and what no device holds.
counts = st.one_of(
    st.integers(1, 40),
    st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK]),
    st.integers(1, 2**33),
    st.integers(2**40, MOST_BLOCKS * CHUNK),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return host.compiled(tmp_path_factory.mktemp("common"))


def test_limits(library):
    threads, chunk, most_blocks, small, large, small_bytes, large_bytes, numbers = map(library.limit, range(8))
    assert (chunk, most_blocks, small, large) == (CHUNK, MOST_BLOCKS, SMALL, LARGE)
    assert chunk == 16 * threads
    # What the arguments of a kernel may take: everywhere, and since CUDA 12.1.
    assert small_bytes + numbers <= 4096
    assert large_bytes + numbers <= 32764


def launches(library, sizes) -> list[tuple[int, int, int]]:
    given_counts, room = host.integers(sizes), len(sizes) + 1
    out = torch.zeros(room, 3, dtype=torch.int64)
    found = library.launches(
        host.address(given_counts), ctypes.c_int64(len(sizes)), host.address(out), ctypes.c_int64(room)
    )
    return [tuple(row) for row in out[:found].tolist()]


@given(st.lists(counts, min_size=1, max_size=60), st.integers(1, 170), seeds)
def test_every_tensor_is_in_one_launch(library, some, repeats, seed):
    """Up to 10 000 tensors; sizes past 2^31 elements and past what one grid holds."""
    sizes = (some * repeats)[:10_000]
    found = launches(library, sizes)
    assert list(itertools.chain(*(range(first, last) for first, last, _ in found))) == list(range(len(sizes)))
    for (first, last, blocks), following in itertools.zip_longest(found, found[1:]):
        assert blocks == sum(-(-size // CHUNK) for size in sizes[first:last]) <= MOST_BLOCKS
        assert 0 < last - first <= LARGE
        if following:  # no launch ends early
            assert last - first == LARGE or blocks + -(-sizes[last] // CHUNK) > MOST_BLOCKS


def test_a_grid_may_be_full(library):
    sizes = [(MOST_BLOCKS - 1) * CHUNK, 5, 1]
    assert launches(library, sizes) == [(0, 2, MOST_BLOCKS), (2, 3, 1)]


@given(st.lists(counts, min_size=1, max_size=LARGE), st.data())
def test_every_block_has_its_own_elements(library, sizes, data):
    """Block by block the elements follow each other: none is left out, none is in two, none is past the end."""
    first, last, blocks = launches(library, sizes)[0]
    sizes = sizes[first:last]
    ends = list(itertools.accumulate(-(-size // CHUNK) for size in sizes))
    # The first and last of each tensor and its neighbours, and any others.
    asked = {block for end in ends for block in (end - 2, end - 1, end, end + 1) if 0 <= block < blocks}
    asked |= set(data.draw(st.lists(st.integers(0, blocks - 1), max_size=20)))
    asked = sorted(asked)
    out = torch.zeros(len(asked), 2, dtype=torch.int64)
    given_counts, given_blocks = host.integers(sizes), torch.tensor(asked).to(torch.uint32)
    library.places_of_blocks(
        host.address(given_counts), ctypes.c_int64(len(sizes)), host.address(given_blocks),
        ctypes.c_int64(len(asked)), host.address(out),
    )  # fmt: skip
    for block, (entry, element) in zip(asked, out.tolist(), strict=True):
        expected = bisect.bisect_right(ends, block)
        assert entry == expected
        assert element == (block - (ends[expected - 1] if expected else 0)) * CHUNK < sizes[entry]


def pieces(sizes, dtype, offset, seed):
    """Tensors that begin `offset` elements into memory of their own, with guards around them."""
    generator = torch.Generator().manual_seed(seed)
    bases = [torch.full((size + 40,), 7.0, dtype=torch.float64) for size in sizes]
    for base, size in zip(bases, sizes, strict=True):
        base[offset : offset + size] = torch.randn(size, generator=generator, dtype=torch.float64)
    bases = [base.to(dtype) for base in bases]
    return bases, [base[offset : offset + size] for base, size in zip(bases, sizes, strict=True)]


@given(
    st.lists(st.one_of(st.integers(1, 70), st.integers(CHUNK - 20, CHUNK + 20)), min_size=1, max_size=4),
    st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.integers(0, 9), st.integers(0, 9),
    st.sampled_from([0.0, 0.5, 0.999, 1.0]), st.sampled_from([None, torch.float32, torch.float64]), seeds,
)  # fmt: skip
def test_the_momentum_update(library, sizes, target_dtype, source_dtype, offset, other, momentum, on_device, seed):
    bases, target = pieces(sizes, target_dtype, offset, seed)
    _, source = pieces(sizes, source_dtype, other, seed + 1)
    expected = [x.clone() for x in target]
    number = None if on_device is None else torch.tensor(momentum, dtype=on_device)
    reference.ema_update_(expected, source, momentum if number is None else number)
    host.ema(library, target, source, 0.25 if on_device else momentum, number)
    for x, y, base in zip(target, expected, bases, strict=True):
        # The same roundings, but for one that a fused multiply-add saves.
        ulp = torch.finfo(torch.promote_types(target_dtype, torch.float32)).eps
        torch.testing.assert_close(x, y, rtol=max(2 * ulp, torch.finfo(target_dtype).eps), atol=ulp)
        assert base[:offset].eq(7).all()
        assert base[offset + len(x) :].eq(7).all()


def test_more_tensors_than_a_table_holds(library):
    for count in (SMALL, SMALL + 1, LARGE, LARGE + 1, 2500):
        target, source = ([torch.full((1 + i % 3,), float(i + k)) for i in range(count)] for k in (0, 1))
        host.ema(library, target, source, 0.5)
        for i, x in enumerate(target):
            assert x.eq(i + 0.5).all()


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4), st.integers(0, 17), st.integers(0, 17), seeds)
def test_copies_of_bytes(library, sizes, offset, other_offset, seed):
    bases, target = zip(
        *((base := torch.zeros(n + 40, dtype=torch.uint8), base[offset : offset + n]) for n in sizes), strict=True
    )
    source = [torch.randint(1, 256, (n + other_offset,), dtype=torch.uint8)[other_offset:] for n in sizes]
    host.ema(library, target, source, 0.9)
    for x, y, base in zip(target, source, bases, strict=True):
        assert x.equal(y)
        assert base.count_nonzero() == len(x)


def test_momentum_1_keeps_the_target_beside_any_source(library):
    target = [torch.ones(5000)]
    host.ema(library, target, [torch.full((5000,), float("inf"))], 1.0)
    assert target[0].eq(1).all()


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan"), float("inf")])
def test_a_momentum_that_is_none_gives_nan(library, momentum):
    target = [torch.ones(5)]
    host.ema(library, target, [torch.zeros(5)], 0.0, torch.tensor(momentum))
    assert target[0].isnan().all()


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**20))
def test_random_bits_are_the_specified_ones(library, seed, place):
    out = torch.zeros(8, dtype=torch.int32)

    def bits(first):
        arguments = ctypes.c_int64(seed), ctypes.c_uint32(place), ctypes.c_int64(first), ctypes.c_int64(8)
        library.random_bits(*arguments, host.address(out))
        return out.long() & 0xFFFFFFFF

    assert bits(0).equal(rounding.random_bits(torch.tensor(seed), place, torch.Size([8])))
    # Past 2^32 elements they are others.
    assert torch.cat([bits(first) for first in (0, 2**32 - 4, 2**33)]).unique().numel() == 24


@pytest.mark.parametrize("source_dtype", DTYPES)
def test_rounding_at_random_is_the_specified_one(library, source_dtype):
    """Bit for bit with momentum 0, where nothing else is rounded."""
    sizes, places = [2 * CHUNK + 5, 3, 70], [4, 0, 1]
    _, target = pieces(sizes, torch.bfloat16, 1, 0)
    _, source = pieces(sizes, source_dtype, 1, 1)
    source[0][7], source[0][9], source[2][11] = float("nan"), float("inf"), 6e4
    host.ema(library, target, source, 0.0, seed=torch.tensor(2**40 + 5), places=places)
    for x, y, place in zip(target, source, places, strict=True):
        expected = rounding.rounded_at_random(y.float(), torch.tensor(2**40 + 5), place)
        torch.testing.assert_close(x.float(), expected, rtol=0, atol=0, equal_nan=True)


def test_every_float16(library):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    out = torch.zeros(2**16)
    library.from_float16(ctypes.c_int64(2**16), host.address(bits), host.address(out))
    torch.testing.assert_close(out, bits.view(torch.float16).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dtype", "function"), [(torch.float16, "to_float16"), (torch.bfloat16, "to_bfloat16")])
def test_floats_round_as_torch_rounds_them(library, dtype, function):
    # Every number of the dtype, halfway to its neighbours and one bit beside; and any others.
    exact = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).float()
    near = exact[:, None].view(torch.int32) + torch.tensor([0, 0x7FFF, 0x8000, 0x8001, 0xFFF, 0x1000, 0x1001])
    anything = torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0)).int()
    x = torch.cat([near.flatten().int(), anything]).view(torch.float32)
    out = torch.zeros(len(x), dtype=torch.int16)
    getattr(library, function)(ctypes.c_int64(len(x)), host.address(x), host.address(out))
    torch.testing.assert_close(out.view(dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True)


@given(
    st.integers(1, 30), st.integers(1, 90), st.integers(1, 70), st.sampled_from(DTYPES), st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS), st.sampled_from(["contiguous", "sliced", "transposed", "offset"]), kinds,
    st.booleans(), st.sampled_from([1, 4, 32]), st.data(),
)  # fmt: skip
def test_the_enqueue(library, size, count, dim, dtype, keys_dtype, layout, queue_layout, kind, normalize, lanes, data):
    queue = lay_out(torch.full((size, dim), 0.5, dtype=dtype), queue_layout)
    base = queue if queue._base is None else queue._base
    outside = base.isnan()
    keys = lay_out(embeddings(count, dim, keys_dtype, kind, 3), layout)
    pointer = data.draw(st.integers(-2 * size, 3 * size))
    order = data.draw(st.permutations(range(-(-min(count, size) // 8))))
    queue_ptr = torch.tensor([pointer])
    expected, expected_ptr = queue.clone(), queue_ptr.clone()
    reference.enqueue_(expected, expected_ptr, keys, normalize)
    host.enqueue(library, queue, queue_ptr, keys, normalize, lanes, order)
    assert queue_ptr.equal(expected_ptr)
    assert base.isnan().equal(outside)
    if normalize:
        wide = torch.float64 if keys_dtype == torch.float64 else torch.float32
        allowed = 4 * torch.finfo(wide).eps + torch.finfo(dtype).eps
        torch.testing.assert_close(queue, expected, rtol=allowed, atol=torch.finfo(dtype).tiny)
    else:
        assert queue.equal(expected)


def test_keys_without_direction(library):
    queue, keys = torch.zeros(4, 3), torch.tensor([[0.0, 0, 0], [np.inf, 1, 1], [np.nan, 1, 1], [3, 0, 4]])
    host.enqueue(library, queue, torch.zeros(1, dtype=torch.int64), keys, True, 32, [0])
    assert queue[0].eq(0).all()
    assert queue[1:3].isnan().all()
    np.testing.assert_allclose(queue[3], oracle.units(keys[3:].numpy())[0], rtol=1e-6)
