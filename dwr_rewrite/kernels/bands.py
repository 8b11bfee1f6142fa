"""How a banded form of a convolution is cut: windows of columns, registers, tiles. Pure arithmetic.

A row of outputs of one channel is a sum over kernel rows of ``X @ T``: X holds windows of an input
row, and ``T[i, j]`` is the weight with which column i of a window counts for output j, or zero off
the band. A window is cut into chunks of 16 columns, the depth of a tensor core's product, which
makes 8 outputs of a row. So an output costs ``rows of the kernel * 16 * chunks`` multiplications:
112 for 7x7, 416 for 13x13, 1488 for 31x31.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile

CHUNK = 16
"""Columns of a chunk: what one 16-bit product of a tensor core sums."""

GROUP = 8
"""Outputs of a row that one product makes."""

SUMS = 80
"""Registers, of its 255, that a thread may have for the sums of a map."""

BANDS = 48
"""Registers that a thread may have for bands."""

TAPS = 100
"""Registers that a thread may have for sums of a gradient of the weight."""

FEW = 4
"""Rows of a tile that are not cut further to make more programs, for each loads others' inputs."""

WARPS = 8
"""Programs, of one warp each, that should run at a time on a multiprocessor."""


@dataclass(frozen=True, slots=True)
class Window:
    """The input columns of a row of outputs.

    Attributes:
        first: of them, counted from the origin of the input.
        chunks: of :data:`CHUNK` columns.
        vector: elements that are loaded at once.
    """

    first: int
    chunks: int
    vector: int


def window(problem: Problem, columns: int, vector: int) -> Window:
    """The window of ``columns`` outputs, begun early enough for vectors if that costs no chunk.

    Args:
        problem: the map.
        columns: outputs of a row; a multiple of the stride if adjoint.
        vector: the widest load that strides allow, a power of two.
    """
    stride, padding = problem.stride[2], problem.padding[2]
    reach = problem.dilation[2] * (problem.kernel[2] - 1)
    if problem.adjoint:
        low, high = -((reach - padding) // stride), (columns - 1 + padding) // stride
    else:
        low, high = -padding, (columns - 1) * stride + reach - padding
    needed = _chunks(low, high)
    while _chunks(low // vector * vector, high) > needed:
        vector //= 2
    return Window(low // vector * vector, needed, vector)


def width(columns: int) -> int:
    """Columns of the product that makes ``columns`` outputs: a power of two from GROUP on."""
    return max(GROUP, 1 << (columns - 1).bit_length())


def kernel_rows(problem: Problem, tile: Tile) -> tuple[int, int]:
    """Taps along depth and height whose bands a thread holds at a time, of all columns.

    Those of an adjoint map are multiples of its stride, unless they are all, so that the outputs
    with which an input row counts are the same each time.
    """
    room = BANDS // _band(problem, tile)
    height = problem.kernel[1]
    if height > room:
        height = _part(height, room, problem.stride[1] if problem.adjoint else 1)
    whole = height == problem.kernel[1] and height * problem.kernel[0] <= room
    return problem.kernel[0] if whole else 1, height


def kernel_rows_of_gradient(problem: Problem, tile: Tile) -> int:
    """Kernel rows whose taps a program sums for a gradient of the weight."""
    return _part(problem.kernel[1], TAPS // _diagonals(problem, tile), 1)


def fits(problem: Problem, tile: Tile) -> bool:
    """Whether :func:`~dwr_rewrite.kernels.banded.run` can cut the problem by this tile."""
    phases = problem.stride if problem.adjoint else (1, 1, 1)
    return (
        _plain(tile)
        and not any(n % s for n, s in zip(_box(tile), phases, strict=True))
        and _band(problem, tile) * min(phases[1], problem.kernel[1]) <= BANDS
        and (kernel_rows(problem, tile)[0] == problem.kernel[0] or phases[0] == 1)
        and _sums(tile) <= SUMS
    )


def fits_weight(problem: Problem, tile: Tile) -> bool:
    """The same of :func:`~dwr_rewrite.kernels.banded.run_weight`."""
    return _plain(tile) and tile.depth == 1 and _diagonals(problem, tile) <= TAPS


def supports(problem: Problem, itemsize: int) -> bool:
    """Whether a map has a banded form: elements of 16 bits, and a band that registers hold."""
    return itemsize == 2 and fits(problem, map_tile(problem, 1, (1, 1, 1), 1))


def supports_weight(problem: Problem, itemsize: int) -> bool:
    """Whether a gradient of the weight has one."""
    return itemsize == 2 and fits_weight(problem, weight_tile(problem, 1, (1, 1, 1), 1))


def map_tile(problem: Problem, batch: int, size: Triple, multiprocessors: int) -> Tile:
    """The tile for a map.

    Many rows to a tile save loads, for an input row serves every output row that it meets; few
    leave programs enough for every multiprocessor.

    Args:
        problem: the map.
        batch: images.
        size: of the output.
        multiprocessors: of the device.
    """
    depth, step, across = problem.stride if problem.adjoint else (1, 1, 1)
    columns = _columns(problem, across)
    one = width(columns) == GROUP
    wanted = 64 if size[1] == 1 and step == 1 else 32 if one else CHUNK
    positions = min(wanted, max(CHUNK, _floor(SUMS * 32 // (width(columns) * depth * step))))
    # A strided convolution's tile meets more input rows, which are code that is written out.
    most = min(
        (10 if one else 8) * step // problem.stride[1],
        SUMS * 32 // (positions * width(columns) * depth),
    )
    rows = _part(size[1], max(1, most), step)
    lines = batch * -(-size[0] // depth) * -(-size[2] // columns) * problem.out_channels

    def few() -> bool:
        return lines * -(-size[1] // rows) // positions < WARPS * multiprocessors

    while positions > CHUNK and few():
        positions //= 2
    while rows > max(step, FEW) and few():
        rows = _part(rows, rows - 1, step)
    return Tile("mma", 1, positions, depth, rows, columns, 1)


def weight_tile(problem: Problem, batch: int, size: Triple, multiprocessors: int) -> Tile:
    """The tile for a gradient of the weight.

    Args:
        problem: the convolution.
        batch: images.
        size: of the coarse tensor: a convolution's output, a transposed one's input.
        multiprocessors: of the device.
    """
    columns = _columns(_forward(problem), 1)
    rows = _part(size[1], max(1, (14 if columns == GROUP else 8) // problem.stride[1]), 1)
    tile = Tile("mma", 1, 32 if size[1] == 1 else CHUNK, 1, rows, columns, 1)
    lines = batch * size[0] * -(-size[1] // rows) * -(-size[2] // columns)
    filters = problem.groups * problem.multiplier
    parts = problem.kernel[0] * -(-problem.kernel[1] // kernel_rows_of_gradient(problem, tile))
    wanted = -(-WARPS * multiprocessors // (filters * parts))
    splits = max(1, min(wanted, -(-lines // tile.positions)))
    return Tile("mma", 1, tile.positions, 1, rows, columns, 1, splits)


def _columns(problem: Problem, multiple: int) -> int:
    """Outputs of a row: those of one product, or of two that share a window of several chunks."""
    one = max(multiple, GROUP // multiple * multiple)
    two = max(multiple, 2 * GROUP // multiple * multiple)
    chunks = window(problem, one, 1).chunks
    return two if chunks > 1 and window(problem, two, 1).chunks == chunks else one


def _part(length: int, room: int, multiple: int) -> int:
    """The longest multiple of at most ``room`` when ``length`` is cut into as few equal parts."""
    room = max(multiple, room // multiple * multiple)
    part = -(-length // -(-length // room))
    return -(-part // multiple) * multiple


def _floor(n: int) -> int:
    """The highest power of two that is not above ``n``; 0 for 0."""
    return 1 << n.bit_length() >> 1


def _chunks(low: int, high: int) -> int:
    return max(1, -(-(high - low + 1) // CHUNK))


def _plain(tile: Tile) -> bool:
    return tile.channels == tile.warps == 1 and tile.positions >= CHUNK


def _box(tile: Tile) -> Triple:
    return tile.depth, tile.rows, tile.columns


def _sums(tile: Tile) -> int:
    """Registers of a thread for its outputs."""
    return prod(_box(tile)[:2]) * tile.positions * width(tile.columns) // 32


def _band(problem: Problem, tile: Tile) -> int:
    """Registers of a thread for the band of one kernel row: two values each."""
    return window(problem, tile.columns, 1).chunks * CHUNK * width(tile.columns) // 64


def _diagonals(problem: Problem, tile: Tile) -> int:
    """Registers of a thread for the sums of one kernel row."""
    return forward_window(problem, tile.columns, 1).chunks * CHUNK * width(tile.columns) // 32


def forward_window(problem: Problem, columns: int, vector: int) -> Window:
    """The fine columns of a row of coarse values: those of a convolution, transposed or not."""
    return window(_forward(problem), columns, vector)


def _forward(problem: Problem) -> Problem:
    return Problem(1, 1, problem.kernel, problem.stride, problem.padding, problem.dilation)
