"""Depthwise convolution straight from its definition: one loop for every index."""

from __future__ import annotations

from itertools import product

import numpy as np

from dwr_rewrite.spec import ConvSpec


def depthwise(spec: ConvSpec, x, weight, bias=None):
    """Output of ``spec`` for the compact weight, computed element by element in float64."""
    pads = [spec.pads(axis, length) for axis, length in enumerate(x.shape[2:])]
    loop = _transposed if spec.transposed else _forward
    y = loop(spec, np.asarray(x, np.float64), np.asarray(weight, np.float64), pads)
    return y if bias is None else y + np.reshape(bias, (-1,) + (1,) * len(spec.kernel))


def _forward(spec, x, weight, pads):
    lengths = [
        (n + before + after - d * (k - 1) - 1) // s + 1
        for n, (before, after), k, s, d in zip(
            x.shape[2:], pads, spec.kernel, spec.stride, spec.dilation, strict=True
        )
    ]
    y = np.zeros((x.shape[0], spec.out_channels, *lengths))
    for batch, out in product(range(x.shape[0]), range(spec.out_channels)):
        channel = out // spec.multiplier
        for position in product(*map(range, lengths)):
            for tap in product(*map(range, spec.kernel)):
                source = [
                    p * s + t * d - before
                    for p, s, t, d, (before, _) in zip(
                        position, spec.stride, tap, spec.dilation, pads, strict=True
                    )
                ]
                if all(0 <= i < n for i, n in zip(source, x.shape[2:], strict=True)):
                    y[(batch, out, *position)] += (
                        weight[(out, 0, *tap)] * x[(batch, channel, *source)]
                    )
    return y


def _transposed(spec, x, weight, pads):
    lengths = [
        (n - 1) * s + d * (k - 1) + 1 + extra - before - after
        for n, s, d, k, extra, (before, after) in zip(
            x.shape[2:], spec.stride, spec.dilation, spec.kernel, spec.output_padding, pads,
            strict=True,
        )
    ]  # fmt: skip
    y = np.zeros((x.shape[0], spec.out_channels, *lengths))
    for batch, channel, copy in product(*map(range, (*x.shape[:2], spec.multiplier))):
        for position in product(*map(range, x.shape[2:])):
            for tap in product(*map(range, spec.kernel)):
                target = [
                    p * s + t * d - before
                    for p, s, t, d, (before, _) in zip(
                        position, spec.stride, tap, spec.dilation, pads, strict=True
                    )
                ]
                if all(0 <= i < n for i, n in zip(target, lengths, strict=True)):
                    y[(batch, channel * spec.multiplier + copy, *target)] += (
                        weight[(channel, copy, *tap)] * x[(batch, channel, *position)]
                    )
    return y
