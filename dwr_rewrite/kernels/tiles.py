"""Which tile a convolution is cut by: a rule for the first call, and what is worth measuring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dwr_rewrite.kernels import bands, map_tiles, weight_tiles
from dwr_rewrite.kernels.problem import Problem, Triple, triple
from dwr_rewrite.kernels.tile import Tile
from dwr_rewrite.workload import Workload

BANDED = 25
"""Taps from which on a map in 16 bits is multiplied on tensor cores: with as many products an
output takes more instructions than a multiprocessor issues while the memory moves it."""

BANDED_WEIGHT = 49
"""The same of a gradient of the weight, whose sums take more registers as bands."""

CANDIDATES = 8
"""Tiles of a convolution that are measured, at most."""


def check(problem: Problem, tile: Tile) -> None:
    """Checks that a tile can cut a map.

    Raises:
        ValueError: it cannot: its columns do not start anew with the phases of an adjoint map, or
            it has no room for the bands.
    """
    if tile.method == "mma" and not bands.fits(problem, tile):
        raise ValueError(f"tile {tile} does not fit kernel {problem.kernel} with stride "
                         f"{problem.stride}; use another, or none")  # fmt: skip
    if problem.adjoint and tile.method == "fma" and tile.columns % problem.stride[2]:
        raise ValueError(f"tile {tile}: columns in multiples of the stride {problem.stride[2]} "
                         f"expected for an adjoint map")  # fmt: skip


def check_weight(problem: Problem, tile: Tile) -> None:
    """Checks that a tile can cut a gradient of the weight.

    Raises:
        ValueError: it has no room for the sums of a banded one.
    """
    if tile.method == "mma" and not bands.fits_weight(problem, tile):
        raise ValueError(f"tile {tile} does not fit the gradient of a kernel {problem.kernel}; "
                         f"use another, or none")  # fmt: skip


def default(
    problem: Problem, batch: int, in_spatial: Triple, out_spatial: Triple, itemsize: int,
    channels_last: bool, multiprocessors: int,
) -> Tile:  # fmt: skip
    """The tile of a map that was never measured.

    Args:
        problem: the map.
        batch: images.
        in_spatial: lengths of its input.
        out_spatial: lengths of its output.
        itemsize: bytes of an element.
        channels_last: channels lie side by side; otherwise columns do.
        multiprocessors: of the device.
    """
    # A row alone has no input to share with others, and steps take windows twice as long.
    shares = problem.kernel[0] * problem.kernel[1] > 1
    shares = shares and (problem.adjoint or problem.stride[2] == 1)
    banded = shares and problem.taps >= BANDED and bands.supports(problem, itemsize)
    if banded and not channels_last:
        return bands.map_tile(problem, batch, out_spatial, multiprocessors)
    return map_tiles.default_map(
        problem, batch, in_spatial, out_spatial, itemsize, channels_last, multiprocessors
    )


def default_weight(
    problem: Problem, batch: int, in_spatial: Triple, out_spatial: Triple, itemsize: int,
    channels_last: bool, multiprocessors: int,
) -> Tile:  # fmt: skip
    """The tile of a gradient of the weight that was never measured; arguments as of a map's."""
    banded = problem.taps >= BANDED_WEIGHT and bands.supports_weight(problem, itemsize)
    if banded and not channels_last:
        coarse = in_spatial if problem.adjoint else out_spatial
        return bands.weight_tile(problem, batch, coarse, multiprocessors)
    return weight_tiles.default_weight(
        problem, batch, in_spatial, out_spatial, itemsize, channels_last, multiprocessors
    )


def candidates(workload: Workload, multiprocessors: int) -> tuple[Tile, ...]:
    """Tiles that are worth measuring, at most :data:`CANDIDATES`; the rule's own comes first.

    The others are the banded form, where there is one, and what lies around the rule's tile: boxes
    and programs of twice and half the size.

    Args:
        workload: the convolution, in one direction.
        multiprocessors: of the device.
    """
    problem, inside, outside = question(workload)
    batch, itemsize = workload.batch, workload.itemsize
    last = workload.layout == "channels_last"
    sizes = (problem, batch, inside, outside, itemsize, last, multiprocessors)
    if workload.direction == "grad_weight":
        coarse = inside if problem.adjoint else outside
        first, ordinary = default_weight(*sizes), weight_tiles.default_weight(*sizes)
        banded = bands.supports_weight(problem, itemsize)
        made = bands.weight_tile(problem, batch, coarse, multiprocessors)
        around = [
            tile for tile in _around(ordinary, coarse)
            if weight_tiles.is_sound(problem, tile, inside, outside, itemsize, last)
        ]  # fmt: skip
    else:
        first, ordinary = default(*sizes), map_tiles.default_map(*sizes)
        banded = bands.supports(problem, itemsize)
        made = bands.map_tile(problem, batch, outside, multiprocessors)
        around = [t for t in _around(ordinary, outside) if map_tiles.is_sound(problem, t, itemsize)]
    found = [first, *([made] if banded and not last else []), ordinary, *around]
    return tuple(dict.fromkeys(found))[:CANDIDATES]


def _around(tile: Tile, lengths: Triple) -> Iterator[Tile]:
    """Tiles that differ from this one in one number, for an output of these lengths."""
    if tile.splits > 1:
        yield replace(tile, splits=2 * tile.splits)
        yield replace(tile, splits=tile.splits // 2)
    for name, length in zip(("depth", "rows", "columns"), lengths, strict=True):
        size = getattr(tile, name)
        if size < length:
            yield replace(tile, **{name: 2 * size})
        if size > 1:
            yield replace(tile, **{name: (size + 1) // 2})
    yield replace(tile, positions=2 * tile.positions, warps=2 * tile.warps)
    if tile.channels < 16 * tile.warps and tile.positions > 1:
        yield replace(tile, positions=tile.positions // 2, warps=tile.warps // 2)


def question(workload: Workload) -> tuple[Problem, Triple, Triple]:
    """A workload as a problem with the lengths of its input and output.

    That of a gradient of the weight is the convolution itself.
    """
    spec = workload.spec
    assert not isinstance(spec.padding, str)  # a workload has numbers
    forward = Problem(
        spec.channels, spec.multiplier, triple(spec.kernel), triple(spec.stride),
        triple([before for before, _ in spec.padding], 0), triple(spec.dilation), spec.transposed,
    )  # fmt: skip
    inside, outside = triple(workload.input_shape[2:]), triple(workload.output_shape[2:])
    if workload.direction != "grad_input":
        return forward, inside, outside
    return replace(forward, adjoint=not spec.transposed, reduce=True), outside, inside
