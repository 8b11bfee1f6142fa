"""The lemma behind every form: a depthwise weight on the diagonal of a standard one.

Row o of the packed weight holds its filter at column (o // m) mod b. The convolution with
C / b groups then sums b products per tap, all but one of them with an exact zero, so for finite
activations it is the same function (Qin et al. 2018, arXiv 1803.09926).
"""

from __future__ import annotations

from dwr_rewrite.recipe import Conv, Packing, Recipe
from dwr_rewrite.spec import ConvSpec


def diagonal(spec: ConvSpec, width: int) -> Recipe:
    """The block-diagonal form of group width ``width``, which divides ``spec.channels``."""
    groups, m, kernel = spec.channels // width, spec.multiplier, spec.kernel
    if spec.transposed:  # weight [C, M/group, k...]: the column lies beside m, on axis 1
        split, column = (groups, width, 1, m, *kernel), 2
        packed = (spec.channels, width * m, *kernel)
    else:
        split, column = (groups, width, m, 1, *kernel), 3
        packed = (spec.out_channels, width, *kernel)
    return Recipe(Conv(spec, groups), Packing(width, spec.weight_shape, split, column, packed))
