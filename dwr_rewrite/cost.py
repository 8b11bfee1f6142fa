"""What a form costs, by arithmetic alone."""

from __future__ import annotations

from math import prod

from dwr_rewrite.spec import ConvSpec


def macs(spec: ConvSpec, width: int = 1) -> int | None:
    """Multiply-accumulates for one batch element at group width ``width``.

    None where a spatial size is not known. A transposed convolution multiplies once per input
    element and tap, any other once per output element and tap.
    """
    spatial = spec.spatial if spec.transposed else spec.output_spatial()
    if None in spatial:
        return None
    return prod(n for n in spatial if n is not None) * spec.taps * spec.out_channels * width
