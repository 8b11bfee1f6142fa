"""Whether a form computes what the convolution does, as far as rounding lets one see."""

from __future__ import annotations

import numpy as np

from dwr_rewrite.equivalence.statistics import Array
from dwr_rewrite.equivalence.tolerance import Rounding
from dwr_rewrite.passes.onnx.tune.forms import Layer


def difference(layer: Layer, keep: Array, form: Array, on_host: bool) -> str:
    """How a form's output differs from that of ``keep``; empty where rounding explains it.

    Both round sums of the same products. With inputs of magnitude 1 at most, those of an output
    channel sum to no more than S = |w|_1 + |b|, so that either is off by no more than
    (gamma + u) S (see :class:`~dwr_rewrite.equivalence.tolerance.Rounding`), and they differ by no
    more than twice that.

    Args:
        layer: the convolution.
        keep: what it computes, [N, C*m, spatial...], or [N, spatial..., C*m] in channels_last.
        form: what the form computes.
        on_host: onnxruntime's own kernels on the CPU ran it: no TF32 and no Winograd.
    """
    if keep.shape != form.shape:
        return f"its output is {list(form.shape)}, and {list(keep.shape)} is right"
    workload, spec = layer.workload, layer.workload.spec
    rounding = Rounding.of([spec.dtype])
    if not on_host:
        rounding = rounding.on_gpu(tf32=workload.tf32)
    relative = rounding.convolution(spec.taps + spec.bias, spec.kernel, spec.stride, spec.dilation)
    allowed = 2 * (relative + rounding.store) * _magnitude(layer) + rounding.underflow
    axis = -1 if workload.layout == "channels_last" else 1
    shape = [-1 if i == axis % keep.ndim else 1 for i in range(keep.ndim)]
    off = np.abs(form.astype(np.float64) - keep.astype(np.float64)) / allowed.reshape(shape)
    worst = float(np.max(off, initial=0.0))
    if worst <= 1:  # a NaN is no number that is 1 at most
        return ""
    return f"it computes something else: off by {worst:.3g} times what rounding explains"


def _magnitude(layer: Layer) -> Array:
    """Bound on the sum of the products' magnitudes, by output channel [C*m]."""
    spec = layer.workload.spec
    taps = tuple(range(2, 2 + len(spec.kernel)))
    sums = np.abs(layer.weight.astype(np.float64)).sum(axis=taps).reshape(spec.out_channels)
    return sums if layer.bias is None else sums + np.abs(layer.bias.astype(np.float64))
