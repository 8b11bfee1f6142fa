"""How a map on the ordinary units is cut where it was never measured.

The rule counts. A lane's instructions are few for each output where its box is large, for then a
loaded element and a filter serve many outputs; the box is as large as registers, the code that is
written out and the sizes of the layer allow, and as small as it takes to fill the device.
"""

from __future__ import annotations

from math import prod

from dwr_rewrite.kernels.problem import Problem, Triple, triple
from dwr_rewrite.kernels.tile import Tile

UNROLLED = 900
"""Products that a lane may write out one by one for each of its channels; past that a kernel's rows
are looped over. More would compile for more than ten seconds."""

QUICK = 600
"""Products, and twice the loads, that the rule writes out: its first call has to compile within a
few seconds."""

HOISTED = 200
"""Registers of a lane whose rows are looped over: sums, weights and lines of input together. The
compiler loads all lines of a kernel row before it multiplies, and spills what is more."""

STRIDED = 130
"""Elements, weights and sums of a lane in channels_last that a map with steps may have."""

HELD = 64
"""Weights that a lane may hold for each of its channels; a kernel with more loops over its rows."""

THREADS = 128
"""Of a program."""

SUMS = 32
"""Outputs of a lane, for one channel: sums that stay in registers."""

REGISTERS = 80
"""Sums and weights of a lane, for all of its channels. The compiler takes about 50 more."""

WASTE = 1.2
"""Positions that boxes may cover for one that exists."""

IDLE = 1.1
"""Lanes that programs may have for one that has a box."""

WAVES = 2
"""Programs for each multiprocessor that fill a device."""


def unrolled(problem: Problem, tile: Tile) -> bool:
    """Whether a kernel's rows are written out, so that rows are reused.

    An adjoint map needs a box that starts anew with its phases: a multiple of the stride.
    """
    whole = not (tile.depth % problem.stride[0] or tile.rows % problem.stride[1])
    box = tile.depth * tile.rows * tile.columns
    small = problem.taps <= HELD and problem.taps * box <= UNROLLED
    return small and (whole or not problem.adjoint)


def default_map(
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
    box = _box(problem, in_spatial, out_spatial, itemsize, channels_last)
    tile = _cut(problem, box, out_spatial, itemsize, channels_last)
    while programs(problem, batch, out_spatial, tile) < WAVES * multiprocessors:
        smaller = _smaller(box, phases(problem))
        if smaller == box:
            break
        box, tile = smaller, _cut(problem, smaller, out_spatial, itemsize, channels_last)
    return tile


def programs(problem: Problem, batch: int, out_spatial: Triple, tile: Tile) -> int:
    """How many programs share a map."""
    depth, height, width = out_spatial
    lanes = -(-height // tile.rows) * -(-width // tile.columns)
    blocks = -(-depth // tile.depth) * -(-lanes // tile.positions)
    return batch * blocks * -(-problem.out_channels // tile.channels)


def phases(problem: Problem) -> Triple:
    """What a box has to be a multiple of for its rows to be written out."""
    return problem.stride if problem.adjoint else (1, 1, 1)


def _box(
    problem: Problem, in_spatial: Triple, out_spatial: Triple, itemsize: int, channels_last: bool
) -> Triple:
    """Depth, rows and columns of a lane, on a device that is easily filled."""
    deep, high, wide = phases(problem)
    vector, flat = 16 // itemsize, out_spatial[1] == 1
    if channels_last:
        columns, room = _sizes(8 if flat else 4, wide), 8
    else:
        longest = [v for v in _sizes(vector * (2 if flat else 1), wide) if v > 1]
        # A quarter of the columns is a vector at least; else they are loaded one by one, and two of
        # 16 bits still share a line.
        columns = [v for v in longest if in_spatial[2] % max(2, v // 4) == 0]
        columns, room = [*columns, *_sizes(4 // itemsize, wide)], SUMS
    # Of phases that have no room the rows are looped over.
    high = high if high * wide <= SUMS else 1
    deep = deep if deep * high * wide <= SUMS else 1
    smallest = deep * high * columns[-1]
    boxes = [
        (deep, r, c)
        for c in _covering(columns, out_spatial[2])
        for r in _covering([r for r in (8, 7, 4, 2, 1) if r % high == 0] or [1], out_spatial[1])
        if deep * r * c <= max(room, smallest) and _written(problem, (deep, r, c)) <= QUICK
        and not (channels_last and _is_heavy(problem, (deep, r, c)))
    ]  # fmt: skip

    def cost(box: Triple) -> float:
        """Loads of an output that exists."""
        covered = prod(-(-n // b) * b for n, b in zip(out_spatial, box, strict=True))
        return _loads(problem, box) * covered / prod(out_spatial)

    return min(boxes, key=cost, default=(1, 1, columns[-1]))


def _products(problem: Problem, box: Triple) -> int:
    """That are written out: all, or those of one row of the kernel."""
    whole = unrolled(problem, Tile("fma", 1, 1, *box))
    return prod(box) * (problem.taps if whole else problem.kernel[2])


def _met(problem: Problem, box: Triple) -> Triple:
    """Elements along each axis that a lane loads for its box.

    Where a kernel's rows are looped over, those of one of them, for every row of the box.
    """
    reach = [d * (k - 1) for k, d in zip(problem.kernel, problem.dilation, strict=True)]
    if problem.adjoint:
        met = [max(1, (b + r) // s) for b, r, s in zip(box, reach, problem.stride, strict=True)]
    else:
        met = [(b - 1) * s + r + 1 for b, r, s in zip(box, reach, problem.stride, strict=True)]
    if not unrolled(problem, Tile("fma", 1, 1, *box)):
        met[:2] = box[:2]
    return triple(met)


def _written(problem: Problem, box: Triple) -> int:
    """What compiling takes: products that are written out, and loads, which take twice as long."""
    return _products(problem, box) + 2 * prod(_met(problem, box))


def _is_heavy(problem: Problem, box: Triple) -> bool:
    """Whether a box of a map with steps, which share little, holds more than registers do."""
    steps = prod(problem.stride) > 1 and not problem.adjoint
    return steps and prod(_met(problem, box)) + problem.taps + prod(box) > STRIDED


def _loads(problem: Problem, box: Triple) -> float:
    """Elements and weights that a lane loads for each output of its box."""
    whole = unrolled(problem, Tile("fma", 1, 1, *box))
    rows = 1 if whole else problem.kernel[0] * problem.kernel[1]
    return (rows * prod(_met(problem, box)) + problem.taps) / prod(box)


def _cut(
    problem: Problem, box: Triple, out_spatial: Triple, itemsize: int, channels_last: bool
) -> Tile:
    """The tile with this box: lanes along what is contiguous."""
    sums = prod(box)
    if not channels_last:
        lanes = -(-out_spatial[1] // box[1]) * -(-out_spatial[2] // box[2])
        sizes = [n for n in (128, 64, 32, 16, 8, 4) if -(-lanes // n) * n <= IDLE * lanes]
        positions = sizes[0] if sizes else 4  # the longest stretches of a row that fit
        return Tile("fma", THREADS // positions, positions, *box)
    whole = unrolled(problem, Tile("fma", 1, 1, *box))
    weights = problem.taps if whole else problem.kernel[2]
    vector = 16 // itemsize
    while vector > 1 and (
        vector * (sums + weights) > REGISTERS
        or (not whole and _hoisted(problem, box, vector, itemsize) > HOISTED)
    ):
        vector //= 2
    channels = min(THREADS // 2, max(vector, 1 << (problem.out_channels - 1).bit_length()))
    return Tile("fma", channels, THREADS * vector // channels, *box)


def _sizes(longest: int, phase: int) -> list[int]:
    """Phase * 2^i up to the longest, which comes first; at least the phase."""
    found = [phase]
    while found[0] * 2 <= longest:
        found.insert(0, found[0] * 2)
    return found


def _covering(sizes: list[int], length: int) -> list[int]:
    """The sizes that cover a length with little waste; the last where none does."""
    return [n for n in sizes if -(-length // n) * n <= WASTE * length] or sizes[-1:]


def _smaller(box: Triple, phases: Triple) -> Triple:
    """A box with half the rows, or half the columns; the same if it is the smallest."""
    deep, rows, columns = box
    for fewer in (4, 2, 1):
        if fewer < rows and fewer % phases[1] == 0:
            return deep, fewer, columns
    if columns % (2 * phases[2]) == 0:
        return deep, rows, columns // 2
    return box


def is_sound(problem: Problem, tile: Tile, itemsize: int) -> bool:
    """Whether a tile around the rule's has room in registers, and starts with its phases."""
    box = (tile.depth, tile.rows, tile.columns)
    if any(n % s for n, s in zip(box, phases(problem), strict=True)):
        return False
    together = max(1, tile.channels * tile.positions // (32 * tile.warps))
    looped = not unrolled(problem, tile)
    if looped and _hoisted(problem, box, together, itemsize) > HOISTED:
        return False
    return prod(box) * together <= 2 * SUMS and _products(problem, box) <= UNROLLED


def _hoisted(problem: Problem, box: Triple, together: int, itemsize: int) -> int:
    """Registers of a lane whose rows are looped over."""
    lines = prod(_met(problem, box)) * max(1, together * itemsize // 4)
    return together * (prod(box) + problem.kernel[2]) + lines
