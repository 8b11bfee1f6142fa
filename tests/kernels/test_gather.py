from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dwr_rewrite.kernels import gather, tiles
from dwr_rewrite.kernels.problem import ACTIVATIONS, Problem, Triple, triple
from dwr_rewrite.kernels.tile import Tile
from tests.kernels import maps
from tests.kernels.maps import FORMS, LAST, assert_close, draw, error_bound, output_size, reference

SMALL = Tile(channels=2, positions=16, rows=2, columns=2)
run, check = partial(maps.run, gather.run), partial(maps.check, gather.run)


# (kernel, stride, padding, dilation, input's spatial lengths)
GEOMETRIES: dict[str, tuple[Triple, Triple, Triple, Triple, Triple]] = {
    "3x3": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 9, 11)),
    "3x3 aligned": ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 8, 16)),
    "3x3 steps of two": ((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 1, 1), (1, 8, 16)),
    "2x2 steps of three": ((1, 2, 2), (1, 3, 3), (0, 0, 0), (1, 1, 1), (1, 9, 12)),
    "5x5 dilated": ((1, 5, 5), (1, 1, 1), (0, 4, 4), (1, 2, 2), (1, 10, 12)),
    "one column": ((1, 5, 1), (1, 2, 1), (0, 2, 0), (1, 1, 1), (1, 12, 5)),
    "3x5 mixed": ((1, 3, 5), (1, 2, 1), (0, 1, 6), (1, 3, 2), (1, 9, 14)),
    "1x1": ((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), (1, 5, 4)),
    "1-D": ((1, 1, 4), (1, 1, 1), (0, 0, 3), (1, 1, 1), (1, 1, 24)),
    "1-D k31": ((1, 1, 31), (1, 1, 1), (0, 0, 15), (1, 1, 1), (1, 1, 40)),
    "3-D": ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (4, 5, 8)),
    "3-D strided": ((3, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1), (3, 8, 8)),
    "3-D deep": ((5, 1, 1), (2, 1, 1), (2, 0, 0), (1, 1, 1), (9, 3, 4)),
    "cropped": ((1, 3, 3), (1, 1, 1), (0, -1, -2), (1, 1, 1), (1, 9, 12)),
    "13x13": ((1, 13, 13), (1, 1, 1), (0, 6, 6), (1, 1, 1), (1, 4, 8)),
    "31x31": ((1, 31, 31), (1, 1, 1), (0, 15, 15), (1, 1, 1), (1, 2, 8)),
    "large and strided": ((1, 9, 9), (1, 2, 3), (0, 4, 4), (1, 1, 1), (1, 9, 12)),
}  # fmt: skip


@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_default_tiles(name: str, adjoint: bool, reduce: bool) -> None:
    kernel, stride, padding, dilation, spatial = GEOMETRIES[name]
    m = 1 if "31" in name or "13" in name else 2
    problem = Problem(3, m, kernel, stride, padding, dilation, adjoint, reduce)
    size = output_size(problem, spatial)
    tile = tiles.default(problem, 1, spatial, size, 4, channels_last=False, multiprocessors=1)
    check(problem, tile, draw((1, problem.in_channels, *spatial)), size)
    if prod(kernel) < 100:
        tile = tiles.default(problem, 1, spatial, size, 4, channels_last=True, multiprocessors=1)
        x = draw((1, problem.in_channels, *spatial)).to(memory_format=LAST)
        check(problem, tile, x, size)


CONV = Problem(4, 1, (1, 3, 3), (1, 2, 2), (0, 1, 1))
BACK = Problem(4, 1, (1, 3, 3), (1, 2, 2), (0, 1, 1), adjoint=True, reduce=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("problem", [CONV, BACK])
@pytest.mark.parametrize("columns", [2, 4, 8, 16])
def test_vectors(problem: Problem, last: bool, dtype: torch.dtype, columns: int) -> None:
    spatial = (1, 5, 32)
    tile = Tile(channels=4, positions=8, rows=2, columns=columns)
    x = draw((1, 4, *spatial), dtype)
    check(problem, tile, x.to(memory_format=LAST) if last else x, output_size(problem, spatial))


@pytest.mark.parametrize(
    "tile",
    [
        Tile(channels=1, positions=8),
        Tile(channels=8, positions=32, rows=7, columns=2),
        Tile(channels=2, positions=16, depth=2, rows=2, columns=2),
        Tile(channels=2, positions=16, depth=3, rows=1, columns=4),
        Tile(channels=2, positions=16, rows=3, columns=6),
    ],
    ids=str,
)
@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
def test_any_tile_gives_the_same_map(tile: Tile, adjoint: bool, reduce: bool) -> None:
    problem = Problem(2, 2, (2, 3, 2), (1, 2, 1), (1, 1, 1), (1, 1, 1), adjoint, reduce)
    spatial = (2, 4, 6)
    check(problem, tile, draw((1, problem.in_channels, *spatial)), output_size(problem, spatial))


def views() -> dict[str, Tensor]:
    """[2, 3, 1, 8, 16] in ways that no layout has."""
    wide = draw((2, 6, 2, 8, 32))
    return {
        "every other": wide[:, ::2, :1, :, ::2],
        "shifted": wide[:, 1:4, 1:, :, 1:17],
        "transposed": draw((2, 3, 1, 16, 8)).transpose(3, 4),
        "one image for all": draw((1, 3, 1, 8, 16)).expand(2, -1, -1, -1, -1),
        "one channel for all": draw((2, 1, 1, 8, 16)).expand(-1, 3, -1, -1, -1),
        "one value": draw((1, 1, 1, 1, 1)).expand(2, 3, 1, 8, 16),
        "batch inside": draw((3, 1, 8, 16, 2)).permute(4, 0, 1, 2, 3),
    }


@pytest.mark.parametrize("name", views())
def test_strides(name: str) -> None:
    problem = Problem(3, 1, (1, 3, 3), padding=(0, 1, 1))
    check(problem, SMALL, views()[name], (1, 8, 16))


@pytest.mark.parametrize("name", ["every other", "shifted", "transposed", "batch inside"])
def test_strides_of_the_output(name: str) -> None:
    problem = Problem(3, 1, (1, 3, 3), padding=(0, 1, 1))
    check(problem, SMALL, draw((2, 3, 1, 8, 16)), (1, 8, 16), out=views()[name])


def test_what_lies_beside_a_view_stays() -> None:
    problem = Problem(3, 1, (1, 3, 3), padding=(0, 1, 1))
    around = torch.full((4, 5, 1, 12, 20), 7.0)
    run(problem, SMALL, draw((2, 3, 1, 8, 16)), (1, 8, 16), out=around[1:3, 1:4, :, 2:10, 2:18])
    around[1:3, 1:4, :, 2:10, 2:18] = 7.0
    assert (around == 7.0).all()


def test_what_lies_beside_an_input_is_not_read() -> None:
    problem = Problem(3, 1, (1, 3, 3), padding=(0, 1, 1))
    around = torch.full((4, 5, 1, 12, 20), float("nan"))
    around[1:3, 1:4, :, 2:10, 2:18] = draw((2, 3, 1, 8, 16))
    check(problem, SMALL, around[1:3, 1:4, :, 2:10, 2:18], (1, 8, 16))


@pytest.mark.parametrize("problem", [CONV, BACK])
@pytest.mark.parametrize("last", [False, True])
def test_a_grid_that_is_too_large_is_laid_flat(
    problem: Problem, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "GRID", 1)
    x = draw((3, 4, 1, 6, 6))
    size = output_size(problem, (1, 6, 6))
    check(problem, SMALL, x.to(memory_format=LAST) if last else x, size)


@pytest.mark.parametrize("axis", [1, 2, 3, 4])
@pytest.mark.parametrize("problem", [CONV, BACK, replace(CONV, kernel=(1, 9, 9))], ids=str)
def test_offsets_past_32_bits(problem: Problem, axis: int) -> None:
    """Elements 2^31 apart, in memory that is reserved and, but for a few pages, never touched."""
    shape, far = (1, 4, 2, 6, 6), (1 << 31) // 3 + 1
    strides = [0, *(math.prod(shape[i + 1 :]) for i in range(1, 5))]
    strides[axis] = far
    x = torch.empty(far * shape[axis], dtype=torch.float16).as_strided(shape, strides)
    x.copy_(draw(shape, torch.float16))
    size = output_size(problem, (2, 6, 6), behind=(0, 6, 6))
    check(problem, SMALL, x, size)
    out_shape = (1, problem.out_channels, *size)
    strides = [0, *(math.prod(out_shape[i + 1 :]) for i in range(1, 5))]
    strides[axis] = far
    out = torch.empty(far * out_shape[axis], dtype=torch.float16).as_strided(out_shape, strides)
    check(problem, SMALL, draw(shape, torch.float16), size, out=out)


ATEN: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "hardswish": F.hardswish,
}


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # numpy's
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("with_scale", "with_bias"), [(True, True), (True, False), (False, True)])
def test_the_epilogue(activation: str, with_scale: bool, with_bias: bool) -> None:
    scale = draw((4,), torch.float64, seed=2) * 8 if with_scale else None
    bias = draw((4,), torch.float64, seed=3) if with_bias else None
    x = draw((2, 4, 1, 5, 6), torch.float64)
    found, weight = run(
        CONV, SMALL, x, (1, 3, 3), scale=scale, bias=bias, activation=activation
    )  # fmt: skip
    expected = torch.from_numpy(reference(x, weight, (1, 3, 3), CONV))
    if scale is not None:
        expected = expected * scale.view(-1, 1, 1, 1)
    if bias is not None:
        expected = expected + bias.view(-1, 1, 1, 1)
    # Sums of nine products, then functions whose derivatives are below 2 and a few roundings.
    torch.testing.assert_close(found, ATEN[activation](expected), rtol=1e-13, atol=1e-13)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")  # numpy's
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_epilogue_where_it_is_not_finite_or_far_out(activation: str) -> None:
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 0.0, -3.0, 6.0])
    x, ones = values.view(1, 1, 1, 1, 8), Problem(1, 1, (1, 1, 1))
    out = torch.empty(1, 1, 1, 1, 8)
    gather.run(x, torch.ones(1, 1), None, None, out, ones, activation, SMALL, lambda k: k)
    expected = ATEN[activation](values.double()).float()
    torch.testing.assert_close(out.flatten(), expected, equal_nan=True)


def test_a_value_that_is_not_finite_reaches_only_its_window() -> None:
    problem = Problem(2, 1, (1, 3, 3), padding=(0, 1, 1))
    x = draw((1, 2, 1, 8, 16))
    x[0, 1, 0, 4, 5] = float("inf")
    found, _ = run(problem, SMALL, x, (1, 8, 16))
    reached = ~found[0, :, 0].isfinite()
    expected = torch.zeros(2, 8, 16, dtype=torch.bool)
    expected[1, 3:6, 4:7] = True
    assert torch.equal(reached, expected)


def test_two_runs_agree_to_the_last_bit() -> None:
    x = draw((2, 4, 1, 9, 9), torch.bfloat16)
    one, _ = run(CONV, SMALL, x, (1, 5, 5))
    other, _ = run(CONV, SMALL, x, (1, 5, 5))
    assert torch.equal(one, other)


def test_a_wrong_result_is_noticed() -> None:
    problem = Problem(2, 1, (1, 3, 3), padding=(0, 1, 1))
    x = draw((1, 2, 1, 6, 6))
    found, weight = run(problem, SMALL, x, (1, 6, 6))
    expected = reference(x, weight, (1, 6, 6), problem)
    bound = error_bound(expected, reference(x.abs(), weight.abs(), (1, 6, 6), problem), 9, x.dtype)
    assert_close(found, expected, bound)
    wrong = found.clone()
    wrong[0, 1, 0, 5, 5] += 1e-4
    with pytest.raises(AssertionError, match="1 of 72 elements are off"):
        assert_close(wrong, expected, bound)
    wrong[0, 1, 0, 5, 5] = float("nan")
    with pytest.raises(AssertionError, match="1 of 72 elements are off"):
        assert_close(wrong, expected, bound)


@st.composite
def cases(draw_from: st.DrawFn) -> tuple[Problem, Triple, Triple, bool, torch.dtype]:
    """Any problem, the lengths of its input and output, its layout and type."""
    rank = draw_from(st.integers(1, 3))

    def axes(values: st.SearchStrategy[int], blank: int = 1) -> Triple:
        return triple([draw_from(values) for _ in range(rank)], blank)

    kernel, stride, dilation = (
        axes(st.integers(1, 4)),
        axes(st.integers(1, 3)),
        axes(st.integers(1, 3)),
    )
    padding, spatial = axes(st.integers(-1, 2), 0), axes(st.integers(1, 6))
    adjoint, reduce = draw_from(st.sampled_from(FORMS))
    groups, multiplier = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 3))
    problem = Problem(groups, multiplier, kernel, stride, padding, dilation, adjoint, reduce)
    behind = axes(st.integers(-2, 3), 0)
    size = tuple(max(1, n) for n in output_size(problem, spatial, behind))
    dtype = draw_from(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    return problem, spatial, triple(size), draw_from(st.booleans()), dtype


@given(cases(), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_every_map(case: tuple[Any, ...], multiprocessors: int) -> None:
    problem, spatial, size, last, dtype = case
    ones = torch.ones(1, problem.in_channels, *spatial)
    filters = torch.ones(problem.groups * problem.multiplier, problem.taps)
    assume((reference(ones, filters, size, problem) != 0).mean() > 0.3)  # or it would say little
    x = draw((2, problem.in_channels, *spatial), dtype)
    tile = tiles.default(problem, 2, spatial, size, x.itemsize, last, multiprocessors)
    check(problem, tile, x.to(memory_format=LAST) if last else x, size)
