from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.kernels.weight_tiles import REGISTERS, THREADS, WRITTEN, chunk, default_weight

H200 = 132


def plane(channels: int, k: int, stride: int = 1) -> Problem:
    return Problem(channels, 1, (1, k, k), (1, stride, stride), (0, k // 2, k // 2))


@pytest.mark.parametrize(
    ("kernel", "sums", "wanted"),
    [
        ((1, 3, 3), 8, (1, 3, 3)),
        ((1, 5, 5), 4, (1, 5, 5)),
        ((1, 7, 7), 2, (1, 7, 7)),
        ((1, 31, 31), 1, (1, 2, 31)),
        ((3, 7, 7), 1, (2, 7, 7)),
        ((1, 13, 13), 1, (1, 7, 13)),
        ((1, 1, 31), 2, (1, 1, 31)),
        ((1, 1, 130), 1, (1, 1, 44)),
        ((1, 1, 31), 200, (1, 1, 1)),
        ((2, 1, 37), 2, (1, 1, 19)),
    ],
)
def test_chunks(kernel: Triple, sums: int, wanted: Triple) -> None:
    assert chunk(kernel, sums) == wanted


@given(st.tuples(*[st.integers(1, 200)] * 3), st.sampled_from([1, 2, 4, 8, 16]))
def test_chunks_cover_a_kernel_and_fit_the_registers(kernel: Triple, sums: int) -> None:
    taps = chunk(kernel, sums)
    assert prod(taps) == 1 or prod(taps) * sums + taps[2] <= REGISTERS
    for k, t in zip(kernel, taps, strict=True):
        parts = -(-k // t)
        assert 1 <= t <= k and (parts - 1) * t < k
    # Rows are cut only where whole ones do not fit, and planes only where whole rows are all taken.
    assert taps[1] == 1 or taps[2] == kernel[2]
    assert taps[0] == 1 or taps[1:] == kernel[1:]


def rule(problem: Problem, batch: int, size: Triple, **options: object) -> Tile:
    """For a "same" convolution."""
    lengths = tuple(-(-n // s) for n, s in zip(size, problem.stride, strict=True))
    settings = {"itemsize": 2, "channels_last": False, "multiprocessors": H200, **options}
    return default_weight(problem, batch, size, lengths, **settings)


@pytest.mark.parametrize(
    ("problem", "batch", "size", "options", "wanted"),
    [
        (plane(128, 3), 64, (1, 56, 56), {}, "fma.c1.p128.d1.r4.v8.w4.s10"),
        (plane(128, 3), 64, (1, 56, 56), {"itemsize": 4}, "fma.c1.p128.d1.r8.v4.w4.s10"),
        (plane(128, 3), 64, (1, 56, 56), {"channels_last": True}, "fma.c64.p8.d1.r4.v4.w4.s392"),
        (plane(120, 5), 64, (1, 56, 56), {}, "fma.c1.p128.d1.r2.v8.w4.s13"),
        (plane(96, 7), 64, (1, 56, 56), {}, "fma.c1.p128.d1.r2.v4.w4.s16"),
        (plane(128, 31), 64, (1, 56, 56), {}, "fma.c1.p128.d1.r1.v8.w4.s1"),
    ],
    ids=["3x3", "3x3 float32", "3x3 channels_last", "5x5", "7x7", "31x31"],
)
def test_the_rule(
    problem: Problem, batch: int, size: Triple, options: dict[str, object], wanted: str
) -> None:
    assert str(rule(problem, batch, size, **options)) == wanted


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_line_of_few_channels_and_one_image_fills_the_device(itemsize: int) -> None:
    problem = Problem(12, 1, (1, 1, 31), padding=(0, 0, 15))
    tile = rule(problem, 1, (1, 1, 65536), itemsize=itemsize)
    assert 12 // tile.channels * tile.splits >= H200


SIZES = st.tuples(st.integers(0, 8), st.integers(0, 120), st.integers(0, 300))


@given(
    st.integers(1, 600), st.integers(1, 3), st.tuples(*[st.integers(1, 31)] * 3),
    st.tuples(*[st.integers(1, 3)] * 3), st.booleans(), st.integers(0, 64), SIZES, SIZES,
    st.sampled_from([2, 4, 8]), st.booleans(), st.integers(1, 200),
)  # fmt: skip
def test_the_rule_keeps_to_its_limits(
    groups: int, multiplier: int, kernel: Triple, stride: Triple, adjoint: bool, batch: int,
    inside: Triple, outside: Triple, itemsize: int, channels_last: bool, multiprocessors: int,
) -> None:  # fmt: skip
    problem = Problem(groups, multiplier, kernel, stride, (0, 1, 1), (1, 1, 1), adjoint)
    tile = default_weight(problem, batch, inside, outside, itemsize, channels_last, multiprocessors)
    assert Tile.parse(str(tile)) == tile
    threads, box = 32 * tile.warps, (tile.depth, tile.rows, tile.columns)
    assert threads == THREADS
    held = tile.channels * tile.positions // threads
    assert held * itemsize <= (16 if channels_last else 8) and held >= 1
    written = prod(box) * prod(chunk(kernel, held * (2 if itemsize == 8 else 1)))
    assert prod(box) == 1 or written <= WRITTEN
    coarse = inside if adjoint else outside
    lanes = batch * prod(-(-n // b) for n, b in zip(coarse, box, strict=True))
    # No program is without positions, if there are any.
    tiles = -(-lanes // tile.positions)
    assert not lanes or (tile.splits - 1) * -(-tiles // tile.splits) < tiles
