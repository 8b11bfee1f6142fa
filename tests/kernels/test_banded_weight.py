from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels import banded, bands
from dwr_rewrite.kernels.problem import Problem
from dwr_rewrite.kernels.tile import Tile
from tests.kernels.test_banded import (
    GEOMETRIES,
    HALVES,
    NUMPY,
    SAME,
    SMALL,
    draw,
    output_size,
    problems,
    sizes,
    views,
)  # fmt: skip
from tests.kernels.test_weight import check as check_gradients
from tests.kernels.test_weight import exact, volumes

Gradients = tuple[Tensor, Tensor | None]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch fills what it does not initialize with NaN, scratch too."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def gradients(x: Tensor, gradient: Tensor, problem: Problem, tile: Tile) -> Gradients:
    """What the kernels find, in outputs that were NaN."""
    filters = problem.groups * problem.multiplier
    out = x.new_full((filters, problem.taps), torch.nan)
    bias = None if problem.adjoint else x.new_full((filters,), torch.nan)
    banded.run_weight(x, gradient, out, bias, problem, tile, lambda kernel: kernel)
    return out, bias


# (kernel, stride, padding, dilation, input's spatial lengths)
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_gradient_of_the_weight_is_its_definition(name: str, adjoint: bool) -> None:
    kernel, stride, padding, dilation, fine = GEOMETRIES[name]
    m = 1 if math.prod(kernel) > 20 else 2
    problem = Problem(1, m, kernel, stride, padding, dilation, adjoint)
    coarse = output_size(replace(problem, adjoint=False), fine)
    assert bands.supports_weight(problem, 2)
    tile = bands.weight_tile(problem, 1, coarse, 1)
    x, gradient = volumes(problem, 1, fine, coarse, HALVES[adjoint])
    check_gradients(gradients(x, gradient, problem, tile), x, gradient, problem)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("columns", "splits"), [(8, 1), (8, 4), (16, 2), (6, 2)])
def test_any_tile_gives_the_same_gradient(rows: int, columns: int, splits: int) -> None:
    problem = Problem(2, 1, (1, 3, 5), padding=(0, 1, 2))
    x, gradient = volumes(problem, 3, (1, 5, 16), (1, 5, 16), torch.bfloat16)
    tile = Tile("mma", 1, 16, 1, rows, columns, 1, splits)
    check_gradients(gradients(x, gradient, problem, tile), x, gradient, problem)


@pytest.mark.parametrize("name", views())
def test_strides(name: str) -> None:
    x = views()[name]
    check_gradients(gradients(x, x, SAME, SMALL), x, x, SAME)


@pytest.mark.parametrize("axis", range(4))
def test_offsets_past_32_bits(axis: int) -> None:
    """Elements 2^31 apart, in memory that is reserved and, but for a few pages, never touched."""
    torch.use_deterministic_algorithms(False)  # which would fill the 4 GiB
    shape = [3 if i == axis else 2 for i in range(4)]
    steps = [2**30 if i == axis else 8 * 3**i for i in range(4)]
    x = torch.empty(2**31 + 1024, dtype=torch.float16).as_strided((*shape, 8), (*steps, 1))
    x.copy_(draw((*shape, 8), x.dtype))
    problem = Problem(shape[1], 1, (2, 2, 2), padding=(1, 1, 1))
    gradient = draw((shape[0], shape[1], shape[2] + 1, shape[3] + 1, 8), x.dtype, seed=2)
    check_gradients(gradients(x, gradient, problem, SMALL), x, gradient, problem)


def test_two_runs_agree_to_the_last_bit() -> None:
    x, gradient = volumes(SAME, 3, (1, 6, 16), (1, 6, 16), torch.bfloat16)
    tile = replace(SMALL, splits=3)
    pairs = zip(*(gradients(x, gradient, SAME, tile) for _ in range(2)), strict=True)
    assert all(a is not None and b is not None and a.equal(b) for a, b in pairs)


@pytest.mark.parametrize(
    "wrong", [replace(SAME, padding=(0, 1, 0)), replace(SAME, stride=(1, 2, 1))], ids=str
)
def test_the_check_finds_a_wrong_problem(wrong: Problem) -> None:
    x, gradient = volumes(SAME, 2, (1, 6, 16), (1, 6, 16), torch.bfloat16)
    with pytest.raises(AssertionError, match="elements are off"):
        check_gradients(gradients(x, gradient, wrong, SMALL), x, gradient, SAME)


@pytest.mark.filterwarnings(NUMPY)
def test_a_gradient_that_is_not_finite_stays_in_its_filter() -> None:
    x, gradient = volumes(SAME, 1, (1, 6, 16), (1, 6, 16), torch.float16)
    gradient[0, 1, 0, 3, 5] = float("nan")
    out, bias = gradients(x, gradient, SAME, SMALL)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    assert bias is not None
    assert bias.isnan().tolist() == [False, True]


def test_a_tile_of_a_gradient_that_does_not_fit_is_refused() -> None:
    x, gradient = volumes(SAME, 1, (2, 4, 8), (2, 4, 8), torch.float16)
    with pytest.raises(DwrError, match="no banded form of"):
        gradients(x, gradient, SAME, replace(SMALL, depth=2))


@given(st.data(), problems(), st.integers(1, 200), st.sampled_from(HALVES))
@settings(max_examples=15, deadline=None)
def test_every_gradient_of_the_weight(
    data: st.DataObject, problem: Problem, multiprocessors: int, dtype: torch.dtype
) -> None:
    problem = replace(problem, reduce=False)
    assume(bands.supports_weight(problem, 2))
    fine, coarse = data.draw(sizes(replace(problem, adjoint=False)))
    x, gradient = volumes(problem, 2, fine, coarse, dtype)
    assume((exact(x, gradient, problem)[0] != 0).double().mean() > 0.3)
    tile = bands.weight_tile(problem, 2, coarse, multiprocessors)
    check_gradients(gradients(x, gradient, problem, tile), x, gradient, problem)
