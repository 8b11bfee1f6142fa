from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import banded, bands
from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile
from tests.kernels import maps
from tests.kernels.maps import FORMS, assert_close, error_bound, output_size, reference

HALVES = (torch.float16, torch.bfloat16)
NUMPY = "ignore:invalid value encountered:RuntimeWarning"  # of the interpreter's products


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch fills what it does not initialize with NaN, scratch too."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


run, check = partial(maps.run, banded.run), partial(maps.check, banded.run)
# The zeros of a band are products too, but exact ones, whose sums are not rounded.


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return maps.draw(shape, dtype, seed)


GEOMETRIES: dict[str, tuple[Triple, Triple, Triple, Triple, Triple]] = {
    "3x3": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 5, 9)),
    "7x7, pairs": ((1, 7, 7), (1, 1, 1), (0, 3, 3), (1, 1, 1), (1, 8, 14)),
    "9x9": ((1, 9, 9), (1, 1, 1), (0, 4, 4), (1, 1, 1), (1, 6, 10)),
    "11x11, two chunks in parts": ((1, 11, 11), (1, 1, 1), (0, 5, 5), (1, 1, 1), (1, 3, 16)),
    "7x17, filled up": ((1, 7, 17), (1, 1, 1), (0, 3, 8), (1, 1, 1), (1, 2, 8)),
    "31 columns": ((1, 5, 31), (1, 1, 1), (0, 2, 15), (1, 1, 1), (1, 2, 20)),
    "5x5 steps of two": ((1, 5, 5), (1, 2, 2), (0, 2, 2), (1, 1, 1), (1, 6, 12)),
    "4x4 steps of three": ((1, 4, 4), (1, 3, 3), (0, 1, 1), (1, 1, 1), (1, 6, 9)),
    "11x11 steps of two": ((1, 11, 11), (1, 2, 2), (0, 5, 5), (1, 1, 1), (1, 4, 6)),
    "3x3 dilated": ((1, 3, 3), (1, 1, 1), (0, 3, 7), (1, 3, 7), (1, 6, 16)),
    "3x2 mixed": ((1, 3, 2), (1, 2, 1), (0, 1, 4), (1, 3, 2), (1, 7, 9)),
    "padded in front": ((1, 2, 4), (1, 1, 1), (0, 1, 3), (1, 1, 1), (1, 4, 8)),
    "cropped": ((1, 3, 3), (1, 1, 1), (0, -1, -2), (1, 1, 1), (1, 5, 12)),
    "1-D, causal": ((1, 1, 4), (1, 1, 1), (0, 0, 3), (1, 1, 1), (1, 1, 24)),
    "1-D k31": ((1, 1, 31), (1, 1, 1), (0, 0, 15), (1, 1, 1), (1, 1, 40)),
    "3-D": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (3, 4, 8)),
    "3-D strided": ((3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), (2, 4, 6)),
    "3-D in parts": ((2, 7, 17), (1, 1, 1), (0, 3, 8), (1, 1, 1), (2, 2, 4)),
}  # fmt: skip


@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_map_is_its_definition(name: str, adjoint: bool, reduce: bool) -> None:
    kernel, stride, padding, dilation, spatial = GEOMETRIES[name]
    m = 1 if math.prod(kernel) > 20 else 2
    problem = Problem(3 - m, m, kernel, stride, padding, dilation, adjoint, reduce)
    size = output_size(problem, spatial)
    assert bands.supports(problem, 2)
    tile = bands.map_tile(problem, 1, size, 1)
    dtype = HALVES[(adjoint + reduce) % 2]
    check(problem, tile, draw((1, problem.in_channels, *spatial), dtype), size)


CONV = Problem(2, 1, (1, 3, 3), (1, 2, 2), (0, 1, 1))
BACK = replace(CONV, adjoint=True, reduce=True)
SMALL = Tile("mma", 1, 16, 1, 2, 8, 1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("problem", [CONV, BACK], ids=["conv", "back"])
@pytest.mark.parametrize(
    "tile",
    [
        SMALL,
        Tile("mma", 1, 32, 1, 4, 8, 1),
        Tile("mma", 1, 16, 2, 2, 16, 1),
        Tile("mma", 1, 16, 1, 2, 6, 1),
    ],
    ids=str,
)
def test_any_tile_gives_the_same_map(problem: Problem, tile: Tile, dtype: torch.dtype) -> None:
    spatial = (2, 5, 12)
    check(problem, tile, draw((2, 2, *spatial), dtype), output_size(problem, spatial))


def views() -> dict[str, Tensor]:
    """[2, 2, 1, 6, 16] in ways that no layout has."""
    wide = draw((2, 4, 2, 6, 32))
    return {
        "every other": wide[:, ::2, :1, :, ::2],
        "shifted": wide[:, 1:3, 1:, :, 1:17],
        "transposed": draw((2, 2, 1, 16, 6)).transpose(3, 4),
        "one image for all": draw((1, 2, 1, 6, 16)).expand(2, -1, -1, -1, -1),
        "channels_last": draw((2, 1, 6, 16, 2)).permute(0, 4, 1, 2, 3),
    }


SAME = Problem(2, 1, (1, 3, 3), padding=(0, 1, 1))


@pytest.mark.parametrize("name", views())
def test_strides(name: str) -> None:
    check(SAME, SMALL, views()[name], (1, 6, 16))


@pytest.mark.parametrize("name", ["every other", "shifted", "transposed", "channels_last"])
def test_strides_of_the_output(name: str) -> None:
    check(SAME, SMALL, draw((2, 2, 1, 6, 16)), (1, 6, 16), out=views()[name])


def test_what_lies_beside_a_view_is_neither_read_nor_written() -> None:
    inside = (slice(1, 3), slice(1, 3), slice(None), slice(2, 8), slice(2, 18))
    around = torch.full((4, 4, 1, 10, 20), float("nan"), dtype=torch.bfloat16)
    around[inside] = draw((2, 2, 1, 6, 16))
    check(SAME, SMALL, around[inside], (1, 6, 16))
    target = torch.full((4, 4, 1, 10, 20), 7.0, dtype=torch.bfloat16)
    run(SAME, SMALL, around[inside], (1, 6, 16), out=target[inside])
    target[inside] = 7.0
    assert (target == 7.0).all()


@pytest.mark.parametrize("axis", range(4))
def test_offsets_past_32_bits(axis: int) -> None:
    """Elements 2^31 apart, in memory that is reserved and, but for a few pages, never touched."""
    torch.use_deterministic_algorithms(False)  # which would fill the 4 GiB
    shape = [3 if i == axis else 2 for i in range(4)]
    steps = [2**30 if i == axis else 8 * 3**i for i in range(4)]
    x = torch.empty(2**31 + 1024, dtype=torch.float16).as_strided((*shape, 8), (*steps, 1))
    x.copy_(draw((*shape, 8), x.dtype))
    problem = Problem(shape[1], 1, (2, 2, 2), padding=(1, 1, 1))
    tile = Tile("mma", 1, 16, 1, 2, 8, 1)
    size = (shape[2] + 1, shape[3] + 1, 8)
    check(problem, tile, x, size)


def test_the_epilogue() -> None:
    x = draw((2, 2, 1, 5, 8), torch.float16)
    scale, bias = draw((2,), x.dtype, seed=2), draw((2,), x.dtype, seed=3)
    found, weight = run(SAME, SMALL, x, (1, 5, 8), scale=scale, bias=bias, activation="hardswish")
    y = torch.from_numpy(reference(x, weight, (1, 5, 8), SAME))
    y = y * scale.double().view(-1, 1, 1, 1) + bias.double().view(-1, 1, 1, 1)
    expected = torch.nn.functional.hardswish(y)
    # One rounding to float16; what happens in float32 is 2^13 times finer.
    torch.testing.assert_close(found.double(), expected, rtol=2**-10, atol=1e-5)


@pytest.mark.filterwarnings(NUMPY)
def test_a_value_that_is_not_finite_reaches_its_windows() -> None:
    problem = Problem(2, 1, (1, 7, 7), padding=(0, 3, 3))
    x = draw((1, 2, 1, 12, 32))
    x[0, 1, 0, 5, 13] = float("inf")
    found, _ = run(problem, Tile("mma", 1, 16, 1, 4, 8, 1), x, (1, 12, 32))
    expected = torch.zeros(2, 12, 32, dtype=torch.bool)
    # Windows begin 4 before a box of 8 columns and have 16: column 13 is in those of boxes 1 and 2.
    expected[1, 2:9, 8:24] = True
    assert torch.equal(~found[0, :, 0].isfinite(), expected)


@pytest.mark.filterwarnings(NUMPY)
def test_rows_of_zeros_that_fill_up_a_kernel_reach_further() -> None:
    problem = Problem(1, 1, (1, 13, 13), padding=(0, 6, 6))
    tile = Tile("mma", 1, 16, 1, 4, 16, 1)
    assert bands.kernel_rows(problem, tile) == (1, 5)  # three parts: 15 rows, two of zeros
    x = draw((1, 1, 1, 24, 16))
    x[0, 0, 0, 12, 8] = float("nan")
    found, _ = run(problem, tile, x, (1, 24, 16))
    rows = (~found[0, 0, 0].isfinite()).any(1).nonzero().flatten().tolist()
    assert rows == list(range(12 - 8, 12 + 6 + 1))


def test_two_runs_agree_to_the_last_bit() -> None:
    x = draw((3, 2, 1, 9, 11))
    first, second = (run(CONV, SMALL, x, (1, 5, 6))[0] for _ in range(2))
    assert first.equal(second)


@pytest.mark.parametrize(
    "wrong", [replace(SAME, padding=(0, 1, 0)), replace(SAME, stride=(1, 2, 1))]
)
def test_the_check_finds_a_wrong_problem(wrong: Problem) -> None:
    x = draw((2, 2, 1, 6, 16))
    found, weight = run(wrong, SMALL, x, (1, 6, 16))
    expected = reference(x, weight, (1, 6, 16), SAME)
    products = reference(x.abs(), weight.abs(), (1, 6, 16), SAME)
    with pytest.raises(AssertionError, match="elements are off"):
        assert_close(found, expected, error_bound(expected, products, 9, x.dtype))


@pytest.mark.parametrize(
    ("problem", "tile"),
    [
        (SAME, replace(SMALL, channels=2)),
        (SAME, replace(SMALL, positions=8)),
        (SAME, replace(SMALL, warps=4)),
        (SAME, replace(SMALL, rows=64)),
        (BACK, replace(SMALL, rows=3)),
        (BACK, replace(SMALL, columns=9)),
        (Problem(1, 1, (1, 3, 600)), SMALL),
    ],
)
def test_a_tile_that_does_not_fit_is_refused(problem: Problem, tile: Tile) -> None:
    x = torch.zeros(1, problem.in_channels, 1, 4, 600, dtype=torch.float16)
    with pytest.raises(DwrError, match="no banded form of"):
        run(problem, tile, x, (1, 4, 4))


@st.composite
def problems(draw_from: st.DrawFn) -> Problem:
    """Any problem that pads by at most half of what its kernel spans, so that outputs are not 0."""

    def axes(values: st.SearchStrategy[int]) -> Triple:
        return draw_from(st.tuples(values, values, values))

    kernel = draw_from(
        st.tuples(*[st.integers(1, 2)] * 3)
        | st.tuples(st.just(1), st.integers(1, 7), st.integers(1, 9))
        | st.tuples(st.just(1), st.just(1), st.integers(1, 31))
    )  # fmt: skip
    dilation, stride = axes(st.integers(1, 3)), axes(st.integers(1, 3))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    depth, height, width = (draw_from(st.integers(min(0, 3 - n), n // 2)) for n in spans)
    adjoint, reduce = draw_from(st.sampled_from(FORMS))
    return Problem(
        1, draw_from(st.integers(1, 2)), kernel, stride, (depth, height, width), dilation, adjoint,
        reduce,
    )  # fmt: skip


@st.composite
def sizes(draw_from: st.DrawFn, problem: Problem) -> tuple[Triple, Triple]:
    """Of the input and output, which may be larger or smaller than that of equal padding."""
    spatial = draw_from(
        st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 13) | st.just(16))
    )
    more = draw_from(st.tuples(*[st.integers(-1, 2)] * 3))
    size = [max(1, n + m) for n, m in zip(output_size(problem, spatial), more, strict=True)]
    assume(max(size) <= 40)
    depth, height, width = size
    return spatial, (depth, height, width)


@given(st.data(), problems(), st.integers(1, 200), st.sampled_from(HALVES))
@settings(max_examples=20, deadline=None)
def test_every_map(
    data: st.DataObject, problem: Problem, multiprocessors: int, dtype: torch.dtype
) -> None:
    assume(bands.supports(problem, 2))
    spatial, size = data.draw(sizes(problem))
    ones = torch.ones(1, problem.in_channels, *spatial)
    met = reference(ones, torch.ones(problem.multiplier, problem.taps), size, problem)
    assume((met != 0).mean() > 0.3)  # or the check would mean little
    tile = bands.map_tile(problem, 2, size, multiprocessors)
    check(problem, tile, draw((2, problem.in_channels, *spatial), dtype), size)
