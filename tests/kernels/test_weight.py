from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dwr_rewrite.kernels import weight
from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile
from tests.kernels.weights import LAYOUTS, Gradients, check, exact, tensor, volumes


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """torch fills what it does not initialize with NaN, scratch too."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def gradients(
    x: Tensor, gradient: Tensor, problem: Problem, tile: Tile, *, atomic: bool = False
) -> Gradients:
    """What the kernels find, in outputs that were NaN."""
    filters = problem.groups * problem.multiplier
    out = x.new_full((filters, problem.taps), torch.nan)
    bias = None if problem.adjoint else x.new_full((filters,), torch.nan)
    weight.run(x, gradient, out, bias, problem, tile, lambda kernel: kernel, atomic=atomic)
    return out, bias


def line(k: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Problem:
    return Problem(2, 1, (1, 1, k), (1, 1, stride), (0, 0, padding), (1, 1, dilation))


def plane(k: int, stride: int = 1, padding: int | None = None, groups: int = 2) -> Problem:
    p = k // 2 if padding is None else padding
    return Problem(groups, 1, (1, k, k), (1, stride, stride), (0, p, p))


K3 = plane(3)
SMALL = Tile("fma", 1, 16, 1, 2, 2, 4, 2)
LAST = ("channels_last", "channels_last")


@dataclass(frozen=True)
class Case:
    problem: Problem
    fine: Triple
    coarse: Triple
    tile: Tile = SMALL
    dtype: torch.dtype = torch.float32
    layouts: tuple[str, str] = ("contiguous", "contiguous")


def same(problem: Problem, size: Triple, **options: Any) -> Case:
    """Both sizes are one."""
    return Case(problem, size, size, **options)


def box(depth: int, rows: int, columns: int, splits: int = 1) -> Tile:
    return Tile("fma", 1, 16, depth, rows, columns, 4, splits)


WIDE = replace(SMALL, channels=8)
CASES = {
    "1x1": same(plane(1), (1, 5, 7)),
    "2x2, even": Case(plane(2, 2, 0), (1, 6, 8), (1, 3, 4)),
    "3x3": same(K3, (1, 7, 7)),
    "by pairs": same(K3, (1, 5, 6)),
    "by fours": same(K3, (1, 5, 12), tile=box(1, 2, 4)),
    "by eights, bf16": same(K3, (1, 3, 16), tile=box(1, 1, 8), dtype=torch.bfloat16),
    "by fours, fp16": same(K3, (1, 3, 8), tile=box(1, 3, 4, 2), dtype=torch.float16),
    "stride 2": Case(plane(3, 2), (1, 8, 8), (1, 4, 4)),
    "stride 3, dilation 2": Case(line(3, 3, 2, 2), (1, 1, 23), (1, 1, 7)),
    "float64": same(K3, (1, 5, 6), dtype=torch.float64),
    "more splits than tiles": same(K3, (1, 3, 3), tile=box(1, 2, 2, 5)),
    "one split": same(K3, (1, 5, 5), tile=box(1, 2, 2)),
    "one split, bf16": same(K3, (1, 5, 5), tile=box(1, 2, 2), dtype=torch.bfloat16),
    "crop": Case(Problem(2, 1, (1, 3, 3), padding=(0, -1, -3)), (1, 7, 12), (1, 3, 4)),
    "crop of a vector": Case(Problem(1, 1, (1, 3, 3), padding=(0, 0, -4)), (1, 5, 12), (1, 3, 4),
                             box(1, 1, 4)),
    "padded by more than the kernel": Case(plane(3, 1, 5, 1), (1, 3, 4), (1, 11, 12)),
    "padded in front": same(Problem(2, 1, (1, 2, 4), padding=(0, 1, 3)), (1, 4, 8)),
    "5x5, dilation 2": same(Problem(1, 1, (1, 5, 5), padding=(0, 4, 4), dilation=(1, 2, 2)),
                            (1, 6, 6)),
    "7x7": same(plane(7, groups=1), (1, 6, 7)),
    "13x13 in chunks": same(plane(13, groups=1), (1, 4, 8), tile=box(1, 1, 2)),
    "31x31 in chunks": same(plane(31, groups=1), (1, 4, 4), tile=box(1, 1, 1)),
    "3x7x7 in chunks": same(Problem(1, 1, (3, 7, 7), padding=(1, 3, 3)), (2, 3, 4),
                            tile=box(2, 1, 2)),
    "130 taps in chunks": Case(line(130, 1, 64), (1, 1, 40), (1, 1, 38), box(1, 1, 2)),
    "112 taps in chunks of vectors": same(line(112, 1, 56), (1, 1, 40), tile=box(1, 1, 2)),
    "4 taps, causal": same(line(4, 1, 3), (1, 1, 37), tile=box(1, 1, 2, 3)),
    "9 taps": same(line(9, 1, 4), (1, 1, 32), tile=box(1, 1, 4, 3)),
    "31 taps": same(line(31, 1, 15), (1, 1, 40), tile=box(1, 1, 4)),
    "5x1": same(Problem(2, 1, (1, 5, 1), padding=(0, 2, 0)), (1, 7, 4)),
    "3x3x3": same(Problem(1, 1, (3, 3, 3), padding=(1, 1, 1)), (3, 4, 4), tile=box(2, 2, 2)),
    "3x3x3, stride (1,2,2)": Case(Problem(1, 1, (3, 3, 3), (1, 2, 2), (1, 1, 1)), (3, 6, 6),
                                  (3, 3, 3), box(1, 2, 2)),
    "multiplier 2": same(replace(K3, multiplier=2), (1, 5, 6)),
    "multiplier 3, transposed": Case(replace(plane(3, 2), multiplier=3, adjoint=True), (1, 7, 8),
                                     (1, 4, 4)),
    "transposed, by fours": Case(replace(plane(4, 2, 1, 1), adjoint=True), (1, 8, 16), (1, 4, 8),
                                 box(1, 2, 4)),
    "channels_last": same(plane(3, groups=8), (1, 4, 5), tile=WIDE, layouts=LAST),
    "channels_last, bf16": same(plane(3, groups=12), (1, 4, 5), tile=WIDE, layouts=LAST,
                                dtype=torch.bfloat16),
    "channels_last, multiplier 2": same(replace(plane(3, groups=4), multiplier=2), (1, 4, 5),
                                        tile=WIDE, layouts=LAST),
    "channels_last, 5 channels": same(plane(3, groups=5), (1, 4, 4), tile=WIDE, layouts=LAST),
    "two formats": same(plane(3, groups=4), (1, 4, 4), tile=WIDE,
                        layouts=("contiguous", "channels_last")),
    "sliced": same(K3, (1, 4, 4), layouts=("sliced", "sliced")),
    "turned": same(K3, (1, 4, 4), layouts=("turned", "turned")),
    "cropped": same(K3, (1, 4, 4), layouts=("cropped", "cropped")),
    "expanded": same(K3, (1, 4, 4), layouts=("contiguous", "expanded")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_it_is_the_definition(case: Case) -> None:
    x, gradient = volumes(case.problem, 2, case.fine, case.coarse, case.dtype, case.layouts)
    check(gradients(x, gradient, case.problem, case.tile), x, gradient, case.problem)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_the_definition_is_that_of_torch(multiplier: int, adjoint: bool) -> None:
    problem = Problem(3, multiplier, (2, 3, 2), (1, 2, 3), (1, 1, 0), (2, 1, 2), adjoint)
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    shape = (3, multiplier, 2, 3, 2) if adjoint else (3 * multiplier, 1, 2, 3, 2)
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3 * multiplier, dtype=torch.float64, requires_grad=True)
    operate = torch.nn.functional.conv_transpose3d if adjoint else torch.nn.functional.conv3d
    y = operate(x, w, b, problem.stride, problem.padding, groups=3, dilation=problem.dilation)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    assert w.grad is not None
    found, bias = exact(x, gradient, problem)
    torch.testing.assert_close(found, w.grad.reshape(found.shape))
    if bias is not None:
        torch.testing.assert_close(bias, b.grad)


def axes(most: int) -> st.SearchStrategy[Triple]:
    return st.tuples(*[st.integers(1, most)] * 3)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[Problem, Tensor, Tensor, Tile]:
    kernel = draw(
        axes(3) | st.tuples(st.just(1), st.integers(1, 5), st.integers(1, 5))
        | st.tuples(st.just(1), st.just(1), st.integers(1, 31))
    )  # fmt: skip
    problem = Problem(
        draw(st.integers(1, 5)), draw(st.integers(1, 2)), kernel, draw(axes(3)),
        draw(st.tuples(*[st.integers(-1, 3)] * 3)), draw(axes(2)), draw(st.booleans()),
    )  # fmt: skip
    sizes = st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 7))
    # Both sizes are free, since what lies behind an input is not told.
    fine, coarse = draw(sizes), draw(sizes)
    if draw(st.booleans()):  # rows of whole vectors
        fine, coarse = (*fine[:2], 8 * min(fine[2], 2)), (*coarse[:2], 8)
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    layouts = draw(st.sampled_from([*zip(LAYOUTS, LAYOUTS, strict=True), LAYOUTS[:2]]))
    x, gradient = volumes(problem, draw(st.integers(1, 2)), fine, coarse, dtype, layouts)
    tile = Tile(
        "fma", draw(st.sampled_from([1, 4, 8])), draw(st.sampled_from([16, 64])),
        draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4])),
        4, draw(st.integers(1, 2)),
    )  # fmt: skip
    return problem, x, gradient, tile


@settings(max_examples=25, deadline=None)
@given(workloads())
def test_it_is_the_definition_everywhere(
    workload: tuple[Problem, Tensor, Tensor, Tile],
) -> None:
    problem, x, gradient, tile = workload
    assume((exact(x, gradient, problem)[0] != 0).double().mean() > 0.3)  # or it would say little
    check(gradients(x, gradient, problem, tile), x, gradient, problem)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_atomic_sums(dtype: torch.dtype) -> None:
    x, gradient = volumes(K3, 2, (1, 6, 6), (1, 6, 6), dtype)
    check(gradients(x, gradient, K3, SMALL, atomic=True), x, gradient, K3)


def test_sums_repeat_bit_by_bit() -> None:
    x, gradient = volumes(K3, 2, (1, 7, 9), (1, 7, 9))
    first, second = (gradients(x, gradient, K3, SMALL) for _ in range(2))
    assert first[0].equal(second[0])
    assert first[1] is not None
    assert second[1] is not None
    assert first[1].equal(second[1])


def test_the_bias_is_left_out_where_it_is_not_asked() -> None:
    x, gradient = volumes(K3, 1, (1, 4, 4), (1, 4, 4))
    out = torch.full((2, 9), torch.nan)
    weight.run(x, gradient, out, None, K3, SMALL, lambda kernel: kernel)
    assert out.equal(gradients(x, gradient, K3, SMALL)[0])


def test_an_empty_batch_gives_zeros() -> None:
    x, gradient = torch.empty(0, 2, 1, 4, 4), torch.empty(0, 2, 1, 4, 4)
    out, bias = gradients(x, gradient, K3, SMALL)
    assert bias is not None
    assert out.count_nonzero() == bias.count_nonzero() == 0


@pytest.mark.parametrize("axis", range(4))
def test_offsets_beyond_32_bits(axis: int) -> None:
    """The third image, channel, plane or row lies 2^31 elements after the first."""
    torch.use_deterministic_algorithms(False)  # which would fill the 4 GiB
    shape = [3 if i == axis else 2 for i in range(4)]
    steps = [2**30 if i == axis else 4 * 3**i for i in range(4)]
    x = torch.empty(2**31 + 1024, dtype=torch.float16).as_strided((*shape, 4), (*steps, 1))
    x.copy_(tensor((*shape, 4), x.dtype, "contiguous", 3))
    problem = Problem(shape[1], 1, (2, 2, 2), padding=(1, 1, 1))
    gradient = tensor((shape[0], shape[1], 2, 2, 4), x.dtype, "contiguous", 4)
    check(gradients(x, gradient, problem, box(1, 1, 4)), x, gradient, problem)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(K3, padding=(0, 1, 0)),
        replace(K3, dilation=(1, 1, 2), padding=(0, 1, 2)),
        replace(K3, stride=(1, 2, 1)),
    ],
)
def test_the_check_finds_a_wrong_problem(wrong: Problem) -> None:
    x, gradient = volumes(K3, 2, (1, 6, 6), (1, 6, 6))
    with pytest.raises(AssertionError):
        check(gradients(x, gradient, wrong, SMALL), x, gradient, K3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_finds_a_lost_product_and_a_forgotten_element(dtype: torch.dtype) -> None:
    x, gradient = volumes(K3, 2, (1, 6, 6), (1, 6, 6), dtype)
    good, bias = gradients(x, gradient, K3, SMALL)
    check((good, bias), x, gradient, K3)
    lost = gradient.clone()
    lost[1, 1, 0, 5, 5] = 0
    with pytest.raises(AssertionError):
        check(gradients(x, lost, K3, SMALL), x, gradient, K3)
    for at, value in (((0, 0), torch.nan), ((1, 8), float(good[1, 8]) * 1.02)):
        bad = good.clone()
        bad[at] = value
        with pytest.raises(AssertionError):
            check((bad, bias), x, gradient, K3)
