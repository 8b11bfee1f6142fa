"""What a convolution has to do, by arithmetic alone: its flops, its bytes and its launches."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from dwr_rewrite.recipe import Recipe
from dwr_rewrite.spec import ConvSpec
from dwr_rewrite.workload import Workload


def macs(spec: ConvSpec, width: int = 1) -> int | None:
    """Multiply-accumulates for one batch element at group width ``width``.

    None where a spatial size is not known. A transposed convolution multiplies once per input
    element and tap, any other once per output element and tap.
    """
    spatial = spec.spatial if spec.transposed else spec.output_spatial()
    if None in spatial:
        return None
    return prod(n for n in spatial if n is not None) * spec.taps * spec.out_channels * width


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a form has to do.

    Attributes:
        flops: two for every multiply-accumulate that is executed, products with zeros included.
        bytes: that are read and written, by the packing of the weight and the reading of its
            gradient too; every tensor once.
        weight_bytes: of the packed weight or its gradient.
        reread_bytes: among ``bytes``, those that are read just after they were written.
        launches: steps that run one after the other: the convolution, and what packs and unpacks.
    """

    flops: int
    bytes: int
    weight_bytes: int
    reread_bytes: int
    launches: int


def work_of(workload: Workload, recipe: Recipe) -> Work:
    """The work of a convolution in the form that ``recipe`` gives it.

    Each of the three directions multiplies as often as the forward and moves its input, its output
    (or their gradients) and the packed weight (or its gradient) once. Where the packed weight is
    not stored it is first made: the compact one is read, the packed one written. The gradient of
    the weight needs none, but its own diagonal is then read and written compactly. A kernel moves
    what the depthwise convolution moves.

    Args:
        workload: the convolution.
        recipe: its form; of the same geometry.
    """
    packing, size = recipe.packing, workload.itemsize
    compact, packed = (prod(shape) * size for shape in (packing.compact, packing.packed))
    found = macs(workload.spec, packing.width)
    assert found is not None  # a workload knows its sizes
    flops, moved = 2 * workload.batch * found, workload.elements * size + packed
    if workload.stored or packing.width == 1:
        return Work(flops, moved, packed, 0, 1)
    if workload.direction == "grad_weight":
        return Work(flops, moved + 2 * compact, packed, compact, 2)
    return Work(flops, moved + compact + packed, packed, packed, 2)
