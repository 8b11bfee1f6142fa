from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwr_rewrite.kernels import bands, map_tiles, tiles
from dwr_rewrite.kernels.problem import Problem, Triple, triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import DIRECTIONS, LAYOUTS, Workload

H200 = 132
LAYERS = json.loads(
    (Path(__file__).parents[2] / "benchmarks/data/depthwise_layers.json").read_text("utf-8")
)["layers"]


def workloads(layer: dict[str, Any], batch: int) -> list[Workload]:
    """A layer of the table in every direction, type and layout."""
    spec = ConvSpec(
        layer["channels"], tuple(layer["kernel"]), layer["multiplier"], tuple(layer["stride"]),
        tuple(layer["dilation"]), tuple((p, p) for p in layer["padding"]), layer["transposed"],
        spatial=tuple(layer["spatial"]),
    )  # fmt: skip
    return [
        Workload(replace(spec, dtype=dtype), batch, direction, layout, stored=False)
        for dtype in ("float32", "bfloat16") for direction in DIRECTIONS for layout in LAYOUTS
    ]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer["example"])
def test_what_a_tile_of_a_known_layer_keeps_to(layer: dict[str, Any], batch: int) -> None:
    for workload in workloads(layer, batch):
        found = tiles.candidates(workload, H200)
        assert 1 <= len(found) <= tiles.CANDIDATES
        assert len(set(found)) == len(found)
        problem, *_ = tiles.question(workload)
        for tile in found:
            assert Tile.parse(str(tile)) == tile
            assert tile.method == "fma" or workload.itemsize == 2
            weight = workload.direction == "grad_weight"
            (tiles.check_weight if weight else tiles.check)(problem, tile)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer["example"])
def test_a_large_batch_takes_the_largest_box_and_a_small_one_fills_the_device(
    layer: dict[str, Any],
) -> None:
    for small, large in zip(workloads(layer, 1), workloads(layer, 64), strict=True):
        if small.direction == "grad_weight":
            continue
        if tiles.candidates(small, H200)[0].method == "mma":
            continue  # tests/kernels/test_banded.py
        problem, _, out_spatial = tiles.question(small)
        one, many = (tiles.candidates(each, H200)[0] for each in (small, large))
        assert prod((one.depth, one.rows, one.columns)) <= prod(
            (many.depth, many.rows, many.columns)
        )
        enough = map_tiles.programs(problem, 1, out_spatial, one) >= map_tiles.WAVES * H200
        phases = problem.stride if problem.adjoint else (1, 1, 1)
        smallest = one.rows <= phases[1] and one.columns < 2 * phases[2]
        assert enough or smallest, str(one)


PROBLEMS = st.builds(
    Problem, st.integers(1, 300), st.integers(1, 3),
    *[st.tuples(*[values] * 3) for values in (
        st.integers(1, 40), st.integers(1, 20), st.integers(0, 20), st.integers(1, 4))],
    st.booleans(), st.booleans(),
)  # fmt: skip


@given(
    PROBLEMS, st.integers(1, 500), st.tuples(*[st.integers(1, 300)] * 3),
    st.tuples(*[st.integers(1, 300)] * 3), st.sampled_from([2, 4, 8]), st.booleans(),
    st.integers(1, 200),
)  # fmt: skip
@settings(deadline=None)
def test_every_map_has_a_tile(
    problem: Problem, batch: int, in_spatial: Triple, out_spatial: Triple, itemsize: int,
    last: bool, multiprocessors: int,
) -> None:  # fmt: skip
    tile = tiles.default(
        problem, batch, in_spatial, out_spatial, itemsize, last, multiprocessors
    )  # fmt: skip
    tiles.check(problem, tile)
    assert Tile.parse(str(tile)) == tile
    box = tile.depth * tile.rows * tile.columns
    if tile.method == "mma":
        assert problem.taps >= tiles.BANDED
        assert itemsize == 2
        assert not last
        return
    assert box <= max(map_tiles.SUMS, problem.stride[2] if problem.adjoint else 1)
    threads = 32 * tile.warps
    assert tile.channels < threads  # else Triton moves the weights through shared memory
    assert tile.channels * tile.positions % threads == 0
    assert tile.channels * tile.positions // threads <= 16 // itemsize


def test_columns_that_do_not_start_with_a_phase_are_refused() -> None:
    problem = Problem(8, 1, (1, 3, 3), (1, 2, 2), adjoint=True)
    tiles.check(problem, Tile(columns=2))
    with pytest.raises(ValueError, match="multiples of the stride 2"):
        tiles.check(problem, Tile(columns=3))


def test_bands_that_have_no_room_are_refused() -> None:
    large = Problem(8, 1, (1, 31, 31))
    tile = bands.map_tile(large, 1, (1, 64, 64), H200)
    tiles.check(large, tile)
    with pytest.raises(ValueError, match="does not fit kernel"):
        tiles.check(large, replace(tile, rows=1000))
    tile = bands.weight_tile(large, 1, (1, 64, 64), H200)
    tiles.check_weight(large, tile)
    with pytest.raises(ValueError, match="does not fit the gradient"):
        tiles.check_weight(large, replace(tile, columns=512))


def test_tensor_cores_from_the_taps_on_from_which_products_limit() -> None:
    def method(kernel: Triple, itemsize: int, last: bool) -> str:
        sizes = (64, (1, 56, 56), (1, 56, 56), itemsize, last, H200)
        return tiles.default(Problem(64, 1, kernel), *sizes).method

    assert method((1, 3, 3), 2, last=False) == "fma"
    assert method((1, 5, 5), 2, last=False) == "mma"
    assert method((1, 1, 31), 2, last=False) == "fma"
    assert method((1, 7, 7), 4, last=False) == "fma"
    assert method((1, 7, 7), 2, last=True) == "fma"


def test_rows_are_written_out_only_where_they_fit_into_registers() -> None:
    small, large = Problem(8, 1, (1, 3, 3)), Problem(8, 1, (1, 31, 31))
    assert map_tiles.unrolled(small, Tile(rows=4, columns=8))
    assert not map_tiles.unrolled(large, Tile())
    steps = replace(small, stride=(1, 2, 2), adjoint=True)
    assert map_tiles.unrolled(steps, Tile(rows=2, columns=2))
    assert not map_tiles.unrolled(steps, Tile(rows=1, columns=2))


def test_a_workload_as_a_problem() -> None:
    spec = ConvSpec(
        8, (4,), 2, (2,), padding=((1, 0),), transposed=True, dtype="bfloat16", spatial=(10,)
    )  # fmt: skip
    forward = Problem(8, 2, (1, 1, 4), (1, 1, 2), (0, 0, 1), adjoint=True)
    found = tiles.question(Workload(spec, 2, "forward"))
    assert found == (forward, triple((10,)), triple((21,)))
    found = tiles.question(Workload(spec, 2, "grad_weight", stored=False))
    assert found == (forward, triple((10,)), triple((21,)))
    backward = replace(forward, adjoint=False, reduce=True)
    found = tiles.question(Workload(spec, 2, "grad_input", stored=False))
    assert found == (backward, triple((21,)), triple((10,)))
