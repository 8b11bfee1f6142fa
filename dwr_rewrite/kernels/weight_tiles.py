"""How the gradient of a weight is cut: the taps of a program, and its tile where none was measured.

The rule counts what a thread issues for a box of coarse values: products, loads with the predicate
and the zero that each takes, conversions, addresses of rows. Kernels compiled for sm_90 have these
numbers to within a tenth. It takes what is cheapest for each value that exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from dwr_rewrite.kernels.problem import Problem, Triple
from dwr_rewrite.kernels.tile import Tile

REGISTERS = 110
"""Sums of a thread, and the row of values that they are multiplied with; the rest are addresses."""

HELD = 180
"""Sums and loaded words of a thread that takes a vector of channels. The compiler loads all that a
box meets before it multiplies, with an address for every column; of 220 on, some are spilled."""

VECTOR = 16
"""Bytes of the widest load of a thread."""

WRITTEN = 680
"""Products, and twice the loads, that a box may write out for a channel; more would compile for
longer than seconds."""

THREADS = 128
"""Of a program."""

PROGRAMS = {False: 12, True: 6}
"""For each multiprocessor, by channels_last: of 64 to 128 registers a thread 8 to 4 fit at once, of
130 to 190 as vectors of channels need, 3 or 2."""

TILES = 4
"""Tiles of a program, at least, for at its end it sums over its lanes; fewer to fill a device."""

L2 = 4.5
"""Issue slots of a thread in which its multiprocessor gets a byte from the L2, at 28 a clock."""

COLUMNS = (1, 2, 4, 8, 16)
"""Of a box; with more, some kernels in channels_last spill."""

WASTE = 1.2
"""Channels that blocks may cover for one that exists."""


def chunk(kernel: Triple, sums: int = 1) -> Triple:
    """The taps along each axis that one program sums; programs share out the others.

    Whole rows of the kernel first, then whole planes, for taps of a row share loads. An axis is cut
    into equal parts, of which the last may have fewer taps.

    Args:
        kernel: taps along depth, height and width.
        sums: float32 registers that a thread needs for every tap.
    """
    width = _equal(kernel[2], REGISTERS // (sums + 1))
    rows = (REGISTERS - width) // (sums * width)
    height = _equal(kernel[1], rows) if width == kernel[2] else 1
    depth = _equal(kernel[0], rows // height) if (height, width) == kernel[1:] else 1
    return depth, height, width


def _equal(length: int, most: int) -> int:
    """The longest part when a length is cut into as few equal ones as do not exceed ``most``."""
    parts = -(-length // max(1, most))
    return -(-length // parts)


@dataclass(frozen=True)
class _Cut:
    """A way to cut a gradient: what a thread takes at once.

    Attributes:
        box: coarse values along each axis.
        channels: that a thread takes side by side.
        fine: lengths of the tensor that the stride walks over.
        coarse: lengths of the other.
    """

    problem: Problem
    box: Triple
    channels: int
    fine: Triple
    coarse: Triple
    itemsize: int
    channels_last: bool

    @cached_property
    def taps(self) -> Triple:
        """Of a program."""
        return chunk(self.problem.kernel, self.channels * max(1, self.itemsize // 4))

    @cached_property
    def parts(self) -> int:
        """Programs that share out the taps."""
        return prod(-(-k // t) for k, t in zip(self.problem.kernel, self.taps, strict=True))

    @cached_property
    def lanes(self) -> int:
        """Boxes of an image."""
        return prod(-(-n // b) for n, b in zip(self.coarse, self.box, strict=True))

    @cached_property
    def met(self) -> Triple:
        """Fine values along each axis that a box meets, from the first to the last."""
        geometry = (self.box, self.taps, self.problem.stride, self.problem.dilation)
        depth, height, width = (
            (b - 1) * s + (t - 1) * d + 1 for b, t, s, d in zip(*geometry, strict=True)
        )
        return depth, height, width

    @cached_property
    def columns(self) -> int:
        """That are loaded at once."""
        width, stride = self.box[2], self.problem.stride[2]
        found = 1 if self.channels_last else VECTOR // self.itemsize
        while any(n % found for n in (width, width * stride, self.fine[2], self.coarse[2])):
            found //= 2
        return found

    @cached_property
    def loads(self) -> tuple[int, int]:
        """Of fine and of coarse values."""
        columns, (depth, height, width) = self.columns, self.met
        fine = -(-(-self.problem.padding[2] % columns + width) // columns)
        return depth * height * fine, prod(self.box) // columns

    def fits(self, most: int = WRITTEN) -> bool:
        """Whether it writes out at most so many products and loads, and keeps its registers."""
        written = prod(self.box) * prod(self.taps) + 2 * prod(self.met)
        words = max(1, self.channels * self.itemsize // 4) * sum(self.loads)
        held = self.channels * prod(self.taps) + words if self.channels > 1 else 0
        return prod(self.box) == 1 or (written <= most and held <= HELD)

    @cached_property
    def cost(self) -> float:
        """Issue slots of a thread for every coarse value that exists, and what the L2 takes."""
        rows = self.met[0] * self.met[1] + self.box[0] * self.box[1]
        values = self.channels * (prod(self.met) + prod(self.box))
        zeros = max(1, self.columns * self.channels * self.itemsize / 8)
        load = 2 + zeros + 2 * self.channels_last
        issued = (
            40 + 6 * rows + load * sum(self.loads) + values * (self.itemsize == 2)
            + self.channels * prod(self.box) * prod(self.taps)
        )  # fmt: skip
        stride, waste = prod(self.problem.stride), self.lanes / prod(self.coarse)
        fetched = L2 * self.itemsize * (1 + stride)
        lane = max(issued, 4 * self._lines) * waste / self.channels
        return self.parts * (lane + fetched)

    @property
    def _lines(self) -> float:
        """Lines of 128 bytes that a warp's loads read; one takes as long as four instructions."""
        if self.channels_last:
            return sum(self.loads) * max(1, self.channels * self.itemsize / 4)
        near, far = _lines(self.box, self.coarse, 1, 1, self.itemsize), self.problem.stride[1:]
        return (
            self.loads[0] * _lines(self.box, self.fine, *far, self.itemsize) + self.loads[1] * near
        )


def _lines(box: Triple, lengths: Triple, down: int, right: int, itemsize: int) -> float:
    """Lines in which 32 lanes read, with boxes side by side in the rows of a plane."""
    _, rows, columns = box
    area = rows * down * columns * right * itemsize / 4
    across = 32 * columns * right / max(1, lengths[2])
    return max(1, min(area, across * max(1, lengths[2] * itemsize / 128)))


def default_weight(
    problem: Problem, batch: int, in_spatial: Triple, out_spatial: Triple, itemsize: int,
    channels_last: bool, multiprocessors: int,
) -> Tile:  # fmt: skip
    """The tile of the gradient of a weight that was never measured.

    Args:
        problem: the convolution whose weight it is.
        batch: images.
        in_spatial: lengths of its input.
        out_spatial: lengths of its output.
        itemsize: bytes of an element.
        channels_last: channels lie side by side; otherwise columns do.
        multiprocessors: of the device.
    """
    fine, coarse = (out_spatial, in_spatial) if problem.adjoint else (in_spatial, out_spatial)
    filters = problem.groups * problem.multiplier
    cuts = list(_cuts(problem, fine, coarse, itemsize, channels_last))
    enough = multiprocessors * THREADS
    filling = [cut for cut in cuts if batch * cut.lanes * filters // cut.channels >= enough]
    most = max(cut.lanes for cut in cuts)
    cut = min(filling or [cut for cut in cuts if cut.lanes == most], key=lambda cut: cut.cost)
    lanes = max(1, batch) * cut.lanes
    channels, positions = _shape(lanes, filters, cut)
    tiles = -(-lanes // positions)
    programs = -(-filters // channels) * cut.parts
    fill = -(-multiprocessors // programs)
    several = min(PROGRAMS[channels_last] * multiprocessors // programs, tiles // TILES)
    share = -(-tiles // min(tiles, max(several, fill)))
    return Tile("fma", channels, positions, *cut.box, THREADS // 32, -(-tiles // share))


def is_sound(
    problem: Problem, tile: Tile, in_spatial: Triple, out_spatial: Triple, itemsize: int,
    channels_last: bool,
) -> bool:  # fmt: skip
    """Whether a tile around the rule's is worth compiling: for longer than the rule's, if need be.

    Args:
        problem: the convolution whose weight it is.
        tile: of the ordinary units.
        in_spatial: lengths of its input.
        out_spatial: lengths of its output.
        itemsize: bytes of an element.
        channels_last: channels lie side by side; otherwise columns do.
    """
    fine, coarse = (out_spatial, in_spatial) if problem.adjoint else (in_spatial, out_spatial)
    box = (tile.depth, tile.rows, tile.columns)
    side = max(1, tile.channels * tile.positions // (32 * tile.warps)) if channels_last else 1
    cut = _Cut(problem, box, side, fine, coarse, itemsize, channels_last)
    return box[2] <= COLUMNS[-1] and cut.fits(2 * WRITTEN)


def _cuts(
    problem: Problem, fine: Triple, coarse: Triple, itemsize: int, channels_last: bool
) -> Iterator[_Cut]:
    """Those that fit; a box of one value always does."""
    vectors = [v for v in (8, 4, 2, 1) if v * itemsize <= VECTOR] if channels_last else [1]
    boxes = product((1, 2), (1, 2, 4, 7, 8), COLUMNS)
    d, h, w = (max(1, n) for n in coarse)  # nothing is cut as one element would be
    for vector, box in product(vectors, boxes):
        cut = _Cut(problem, box, vector, fine, (d, h, w), itemsize, channels_last)
        if cut.fits():
            yield cut


def _shape(lanes: int, filters: int, cut: _Cut) -> tuple[int, int]:
    """Channels and positions of a program."""
    if not cut.channels_last:
        positions = min(THREADS, 1 << (lanes - 1).bit_length())
        return THREADS // positions, positions
    sizes = [c for c in (64, 32, 16) if -(-filters // c) * c <= WASTE * filters]
    channels = max(cut.channels, sizes[0] if sizes else 1 << (min(filters, 16) - 1).bit_length())
    return channels, THREADS * cut.channels // channels
