from __future__ import annotations

from itertools import product
from math import erf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dwr_rewrite.kernels import reference
from dwr_rewrite.kernels.layout import volume
from dwr_rewrite.kernels.problem import ACTIVATIONS, Problem, triple
from tests.kernels import maps

FORMS = list(product((False, True), (False, True)))
# (kernel, stride, padding in front, dilation, input's lengths, output's lengths)
GEOMETRIES = {
    "3x3": ((3, 3), (1, 1), (1, 1), (1, 1), (5, 6), (5, 6)),
    "steps of two, odd": ((3, 3), (2, 2), (1, 1), (1, 1), (7, 8), (4, 4)),
    "steps of two, back": ((3, 3), (2, 2), (1, 1), (1, 1), (4, 4), (7, 8)),
    "more in front": ((3, 2), (1, 2), (2, 1), (1, 1), (5, 6), (5, 4)),
    "more behind": ((3, 3), (2, 2), (0, 0), (1, 1), (6, 8), (3, 4)),
    "dilated": ((3, 5), (1, 1), (2, 4), (2, 2), (6, 9), (6, 9)),
    "cropped in front": ((3, 3), (1, 1), (-1, 0), (1, 1), (7, 6), (3, 5)),
    "past the input": ((2, 3), (2, 1), (0, 1), (1, 1), (3, 4), (5, 9)),
    "1-D, causal": ((4,), (1,), (3,), (1,), (9,), (9,)),
    "1-D, steps longer than the kernel": ((2,), (3,), (0,), (1,), (10,), (4,)),
    "3-D": ((2, 3, 3), (1, 2, 1), (0, 1, 1), (1, 1, 2), (3, 5, 5), (2, 3, 3)),
    "1x1": ((1, 1), (1, 1), (0, 0), (1, 1), (3, 4), (3, 4)),
}  # fmt: skip


def draw(shape: Any, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def problem_of(geometry: Any, multiplier: int, adjoint: bool, reduce: bool) -> Problem:
    kernel, stride, padding, dilation, _, _ = geometry
    return Problem(
        2, multiplier, triple(kernel), triple(stride), triple(padding, 0), triple(dilation),
        adjoint, reduce,
    )  # fmt: skip


def operands(geometry: Any, problem: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    kernel, _, _, _, spatial, _ = geometry
    x = draw((2, problem.in_channels, *spatial), dtype)
    return x, draw((problem.groups * problem.multiplier, 1, *kernel), dtype, 1)


def arguments(geometry: Any, problem: Problem) -> tuple[Any, ...]:
    _, stride, padding, dilation, _, _ = geometry
    return (list(stride), list(padding), list(dilation), problem.groups, problem.adjoint)


def expected_of(x: Tensor, weight: Tensor, geometry: Any, problem: Problem) -> np.ndarray:
    size = geometry[-1]
    full = maps.reference(volume(x), weight, triple(size), problem)
    return full.reshape(*full.shape[:2], *size)


def check(geometry: Any, problem: Problem, dtype: torch.dtype = torch.float64) -> None:
    x, weight = operands(geometry, problem, dtype)
    found = reference.depthwise(
        x, weight, None, None, geometry[-1], *arguments(geometry, problem), problem.reduce,
        "none", "",
    )  # fmt: skip
    expected = expected_of(x, weight, geometry, problem)
    products = expected_of(x.abs(), weight.abs(), geometry, problem)
    count = problem.taps * (problem.multiplier if problem.reduce else 1)
    maps.assert_close(found, expected, maps.error_bound(expected, products, count, dtype))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
def test_each_form_is_the_map(name: str, multiplier: int, adjoint: bool, reduce: bool) -> None:
    check(GEOMETRIES[name], problem_of(GEOMETRIES[name], multiplier, adjoint, reduce))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
def test_narrow_types_are_rounded_once(dtype: torch.dtype, adjoint: bool, reduce: bool) -> None:
    geometry = GEOMETRIES["more in front"]
    check(geometry, problem_of(geometry, 2, adjoint, reduce), dtype)


def test_another_map_is_noticed() -> None:
    geometry = GEOMETRIES["3x3"]
    problem = problem_of(geometry, 1, False, False)
    x, weight = operands(geometry, problem, torch.float64)
    found = reference.depthwise(
        x, weight, None, None, [5, 6], [1, 1], [0, 1], [1, 1], 2, False, False, "none", ""
    )
    expected = expected_of(x, weight, geometry, problem)
    with pytest.raises(AssertionError, match="elements are off"):
        maps.assert_close(found, expected, maps.error_bound(expected, expected, 9, torch.float64))


@settings(max_examples=60)
@given(data=st.data())
def test_any_geometry(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))

    def axes(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(rank))

    geometry = (axes(1, 4), axes(1, 3), axes(-2, 4), axes(1, 3), axes(1, 6), axes(1, 7))
    form = data.draw(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()))
    check(geometry, problem_of(geometry, *form))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_gradient_of_the_weight_is_the_one_of_each_tap(
    name: str, multiplier: int, adjoint: bool
) -> None:
    """By linearity it is <map(x, unit weight), gradient> for the unit weight of each tap."""
    geometry = GEOMETRIES[name]
    problem = problem_of(geometry, multiplier, adjoint, False)
    x, weight = operands(geometry, problem, torch.float64)
    gradient = draw((2, problem.out_channels, *geometry[-1]), seed=2)
    found, sums = reference.depthwise_weight(
        x, gradient, list(weight.shape), *arguments(geometry, problem), True, ""
    )
    assert found.shape == weight.shape and found.is_contiguous()
    flat = maps.as_numpy(found).reshape(weight.shape[0], -1)
    for tap in range(problem.taps):
        unit = torch.zeros(weight.shape[0], problem.taps, dtype=torch.float64)
        unit[:, tap] = 1
        moved = expected_of(x, unit, geometry, problem)
        products = moved * maps.as_numpy(gradient)
        axes = (0, *range(2, products.ndim))
        magnitude = np.abs(products).sum(axes)
        bound = (products[:, 0].size + 2) * np.finfo(np.float64).eps * magnitude
        assert np.all(np.abs(flat[:, tap] - products.sum(axes)) <= bound)
    total = maps.as_numpy(gradient).sum((0, *range(2, gradient.dim())))
    np.testing.assert_allclose(maps.as_numpy(sums), total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("adjoint", [False, True])
def test_sums_are_not_asked_for(adjoint: bool) -> None:
    x, gradient = draw((1, 2, 4)), draw((1, 2, 4))
    _, sums = reference.depthwise_weight(
        x, gradient, [2, 1, 3], [1], [1], [1], 2, adjoint, False, ""
    )
    assert sums.shape == (0,)


@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (2, 2, 3, 3)])
@pytest.mark.parametrize(("adjoint", "reduce"), FORMS)
def test_a_weight_may_have_either_shape(
    shape: tuple[int, ...], adjoint: bool, reduce: bool
) -> None:
    geometry = GEOMETRIES["3x3"]
    x, weight = operands(geometry, problem_of(geometry, 2, adjoint, reduce), torch.float64)
    rest = (None, None, [5, 6], [1, 1], [1, 1], [1, 1], 2, adjoint, reduce, "none", "")
    found = reference.depthwise(x, weight.reshape(shape), *rest)
    assert torch.equal(found, reference.depthwise(x, weight, *rest))


ACTIVATE = {
    "none": lambda u: u,
    "relu": lambda u: np.maximum(u, 0),
    "relu6": lambda u: np.clip(u, 0, 6),
    "silu": lambda u: u / (1 + np.exp(-u)),
    "gelu": lambda u: u * (1 + np.vectorize(erf)(u / np.sqrt(2))) / 2,
    "gelu_tanh": lambda u: u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) / 2,
    "hardswish": lambda u: u * np.clip(u + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("geometry", ["3x3", "past the input"])
@pytest.mark.parametrize(("adjoint", "reduce"), [(False, False), (True, False), (True, True)])
def test_epilogue(activation: str, geometry: str, adjoint: bool, reduce: bool) -> None:
    shapes = GEOMETRIES[geometry]
    problem = problem_of(shapes, 2, adjoint, reduce)
    x, weight = operands(shapes, problem, torch.float64)
    scale, bias = draw((problem.out_channels,), seed=3), draw((problem.out_channels,), seed=4)
    plain = expected_of(x, weight, shapes, problem)
    column = (-1, *(1,) * (plain.ndim - 2))
    for s, b in ((scale, bias), (scale, None), (None, bias)):
        found = reference.depthwise(
            x, weight, s, b, shapes[-1], *arguments(shapes, problem), reduce, activation, ""
        )
        u = plain * (1 if s is None else maps.as_numpy(s).reshape(column))
        u = u + (0 if b is None else maps.as_numpy(b).reshape(column))
        # float64 throughout: any mistake is larger than 1e-12 by orders of magnitude
        np.testing.assert_allclose(
            maps.as_numpy(found), ACTIVATE[activation](u), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adjoint", [False, True])
def test_an_epilogue_is_computed_in_float32(dtype: torch.dtype, adjoint: bool) -> None:
    """The bias cancels the sum but for what a rounding in between would destroy."""
    x = torch.full((1, 1, 1), 1.0, dtype=dtype)
    weight = torch.full((1, 1, 1), 1.0, dtype=dtype)
    scale = torch.tensor([1 + 2.0**-20])
    bias = torch.tensor([-1.0])
    found = reference.depthwise(
        x, weight, scale, bias, [1], [1], [0], [1], 1, adjoint, False, "none", ""
    )
    assert found.dtype == dtype and found.item() == 2.0**-20


@pytest.mark.parametrize("adjoint", [False, True])
def test_an_empty_batch(adjoint: bool) -> None:
    x, gradient = draw((0, 2, 5)), draw((0, 2, 5))
    rest = ([1], [1], [1], 2, adjoint)
    y = reference.depthwise(x, draw((2, 1, 3)), None, None, [5], *rest, False, "silu", "")
    assert y.shape == (0, 2, 5)
    weight, sums = reference.depthwise_weight(x, gradient, [2, 1, 3], *rest, True, "")
    assert torch.equal(weight, torch.zeros(2, 1, 3).double()) and not sums.any()
