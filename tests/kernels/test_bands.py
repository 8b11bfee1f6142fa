from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.kernels import bands
from dwr_rewrite.kernels.problem import Problem, Triple
from tests.kernels.test_banded import SAME, problems

LENGTHS = st.tuples(*[st.integers(1, 300)] * 3)


def test_only_elements_of_16_bits_are_supported() -> None:
    assert [bands.supports(SAME, size) for size in (2, 4, 8)] == [True, False, False]
    assert [bands.supports_weight(SAME, size) for size in (2, 4, 8)] == [True, False, False]


@pytest.mark.parametrize("k", [*range(1, 32), 51, 63])
def test_every_square_kernel_is_supported(k: int) -> None:
    for stride, adjoint in product((1, 2, 3, 4), (False, True)):
        problem = Problem(8, 1, (1, k, k), (1, stride, stride), (0, k // 2, k // 2))
        assert bands.supports(replace(problem, adjoint=adjoint), 2) or k > 31
        assert bands.supports_weight(problem, 2) or k > 31


@given(problems(), LENGTHS, st.integers(1, 64), st.integers(1, 200))
@settings(max_examples=300, deadline=None)
def test_what_is_supported_has_a_tile_at_every_size(
    problem: Problem, size: Triple, batch: int, multiprocessors: int
) -> None:
    if bands.supports(problem, 2):
        assert bands.fits(problem, bands.map_tile(problem, batch, size, multiprocessors))
    if bands.supports_weight(problem, 2):
        assert bands.fits_weight(problem, bands.weight_tile(problem, batch, size, multiprocessors))


def test_a_window_begins_early_for_pairs_where_that_costs_no_chunk() -> None:
    seven, nine = (Problem(1, 1, (1, k, k), padding=(0, k // 2, k // 2)) for k in (7, 9))
    assert bands.window(seven, 8, 1) == bands.Window(-3, 1, 1)
    assert bands.window(seven, 8, 2) == bands.Window(-4, 1, 2)
    assert bands.window(nine, 8, 2) == bands.Window(-4, 1, 2)
    odd = Problem(1, 1, (1, 1, 9), padding=(0, 0, 3))
    assert bands.window(odd, 8, 2) == bands.Window(-3, 1, 1)


def test_kernel_rows_are_taken_in_equal_parts() -> None:
    tiles = {k: bands.map_tile(square(k), 64, (1, 32, 32), 132) for k in (7, 13, 31)}
    found = {k: bands.kernel_rows(square(k), tile) for k, tile in tiles.items()}
    assert found == {7: (1, 7), 13: (1, 5), 31: (1, 4)}


def square(k: int) -> Problem:
    return Problem(96, 1, (1, k, k), padding=(0, k // 2, k // 2))
