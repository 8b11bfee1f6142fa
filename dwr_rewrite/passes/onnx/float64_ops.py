"""The operators that neither onnxruntime nor onnx.reference evaluates in float64, or not in time.

Each follows onnxruntime where the ONNX text and onnxruntime differ. Arrays in, arrays out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dwr_rewrite.recipe import convolve
from dwr_rewrite.spec import Pads, Same, resolve_padding, same_padding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Array = NDArray[Any]
Attributes = dict[str, Any]

ORT = "com.microsoft"
CONVOLUTIONS = frozenset({("", "Conv"), ("", "ConvTranspose"), (ORT, "FusedConv")})


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a Conv or ConvTranspose node does on an input of known shape; see :meth:`of`."""

    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pads
    transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def of(
        cls, attributes: Attributes, x: tuple[int, ...], weight: tuple[int, ...], transposed: bool
    ) -> Geometry:
        """Reads a node's attributes for an input and a weight of these shapes."""
        rank = len(weight) - 2
        stride = tuple(attributes.get("strides") or (1,) * rank)
        dilation = tuple(attributes.get("dilations") or (1,) * rank)
        extra = tuple(attributes.get("output_padding") or (0,) * rank)
        target = tuple(attributes.get("output_shape") or ()) if transposed else ()
        rule = _text(attributes.get("auto_pad", "NOTSET"))
        if target:
            padding = tuple(
                _pads_for(rule, (n - 1) * s + d * (k - 1) + 1 + e - out)
                for n, s, d, k, e, out in zip(
                    x[2:], stride, dilation, weight[2:], extra, target, strict=True
                )
            )
        else:
            given = tuple(attributes.get("pads") or ())
            padding = _numbers(
                resolve_padding(rule, given, rank), x[2:], weight[2:], stride, dilation,
                extra if transposed else None,
            )  # fmt: skip
        groups = attributes.get("group", 1)
        return cls(groups, stride, dilation, padding, transposed, extra)

    def convolve(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """The convolution of ``x`` [N, C, ...], as :func:`dwr_rewrite.recipe.convolve`."""
        return convolve(
            x, weight, bias, groups=self.groups, stride=self.stride, dilation=self.dilation,
            padding=self.padding, transposed=self.transposed, output_padding=self.output_padding,
        )  # fmt: skip


def _pads_for(rule: str, excess: int) -> tuple[int, int]:
    """Padding with which a ConvTranspose's output is ``excess`` shorter than its full length.

    The odd element goes after for SAME_UPPER and before otherwise; an output longer than the full
    one (a negative excess) grows at its end only (onnxruntime's ConvTransposeAttributes).
    """
    if excess < 0:
        return 0, excess
    small, large = excess // 2, excess - excess // 2
    return (small, large) if rule == "SAME_UPPER" else (large, small)


def _numbers(
    padding: Pads | Same, size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...],
    dilation: tuple[int, ...], extra: tuple[int, ...] | None,
) -> Pads:  # fmt: skip
    if not isinstance(padding, str):
        return padding
    return tuple(
        same_padding(padding, n, k, s, d, extra[axis] if extra else None)
        for axis, (n, k, s, d) in enumerate(zip(size, kernel, stride, dilation, strict=True))
    )


def activation(attributes: Attributes) -> Callable[[Array], Array]:
    """The activation of a FusedConv: ``activation`` and ``activation_params``.

    Raises:
        NotImplementedError: an activation that onnxruntime's FusedConv does not document.
    """
    name = _text(attributes.get("activation", ""))
    p = [float(value) for value in attributes.get("activation_params") or ()]
    table: dict[str, Callable[[Array], Array]] = {
        "": lambda v: v,
        "Relu": lambda v: np.maximum(v, 0),
        "LeakyRelu": lambda v: np.where(v < 0, p[0] * v, v),
        "Tanh": np.tanh,
        "Sigmoid": lambda v: np.exp(-np.logaddexp(0, -v)),
        "Clip": lambda v: np.clip(v, p[0], p[1]),
        "HardSigmoid": lambda v: np.clip(p[0] * v + p[1], 0, 1),
    }
    if name not in table:
        raise NotImplementedError(f"activation {name!r} of FusedConv")
    return table[name]


def _erf(_attributes: Attributes, x: Array) -> Array:
    # onnx.reference rounds its erf to float32; onnxruntime has no double kernel.
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def _gelu(attributes: Attributes, x: Array) -> Array:
    if _text(attributes.get("approximate", "none")) == "tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + _erf({}, x / math.sqrt(2)))


def _average_pool(attributes: Attributes, x: Array) -> Array:
    """AveragePool: along each axis a product with the matrix of the means over its windows.

    The windows may be far longer than the input (exporters write the channel count for them).
    """
    kernel = tuple(attributes["kernel_shape"])
    rank = len(kernel)
    stride = tuple(attributes.get("strides") or (1,) * rank)
    dilation = tuple(attributes.get("dilations") or (1,) * rank)
    rule = _text(attributes.get("auto_pad", "NOTSET"))
    given = resolve_padding(rule, tuple(attributes.get("pads") or ()), rank)
    padding = _numbers(given, x.shape[2:], kernel, stride, dilation, None)
    for axis, window in enumerate(zip(kernel, stride, dilation, padding, strict=True), start=2):
        mean = _window_mean(
            x.shape[axis], *window, ceil=bool(attributes.get("ceil_mode", 0)),
            count_padding=bool(attributes.get("count_include_pad", 0)),
        )  # fmt: skip
        x = np.moveaxis(np.tensordot(x, mean, (axis, 1)), -1, axis)
    return x


def _window_mean(
    length: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], *,
    ceil: bool, count_padding: bool,
) -> Array:  # fmt: skip
    """[windows, length]: the weight of each element in the mean over each window."""
    before, after = pads
    span = length + before + after - (dilation * (kernel - 1) + 1)
    last = -(-span // stride) if ceil else span // stride
    if ceil and last * stride >= length + before:  # it would see nothing but padding
        last -= 1
    seen = np.arange(last + 1)[:, None] * stride - before + np.arange(kernel) * dilation
    inside = (seen >= 0) & (seen < length)
    counted = seen < length + after if count_padding else inside
    mean = np.zeros((last + 1, length))
    mean[np.nonzero(inside)[0], seen[inside]] = 1
    return mean / counted.sum(1, keepdims=True)


def _dequantize(
    attributes: Attributes, x: Array, scale: Array, zero_point: Array | None = None
) -> Array:
    """DequantizeLinear, exact: onnx.reference and onnxruntime round an int32 ``x`` to float32."""
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)

    def spread(parameter: Array) -> Array:
        value = parameter.astype(np.float64)
        if block:
            return np.repeat(value, block, axis).take(np.arange(x.shape[axis]), axis)
        if value.size == 1:
            return value.reshape(())
        return value.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])

    shifted = x.astype(np.float64) - (0 if zero_point is None else spread(zero_point))
    return shifted * spread(scale)


def _resize(
    attributes: Attributes,
    x: Array,
    _roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
) -> Array:
    """Linear Resize: along each axis a product with the matrix of the interpolation.

    Raises:
        NotImplementedError: a mode that is left to onnx.reference (whose Resize was a Python loop
            over elements in its older versions).
    """
    rule = _text(attributes.get("coordinate_transformation_mode", "half_pixel"))
    policy = _text(attributes.get("keep_aspect_ratio_policy", "stretch"))
    given = scales if sizes is None else sizes
    if policy != "stretch" or rule not in _COORDINATES or given is None:
        raise NotImplementedError("Resize to a region or to an aspect ratio")
    axes = attributes.get("axes") or range(x.ndim)
    lengths = [x.shape[axis] for axis in axes]
    if sizes is None:
        outs = [math.floor(n * s) for n, s in zip(lengths, given.tolist(), strict=True)]
    else:
        outs, given = sizes.tolist(), sizes / np.array(lengths)
    if outs == lengths:  # onnxruntime copies then, even if a scale is not quite 1
        return x
    if _text(attributes["mode"]) != "linear" or attributes.get("antialias", 0):
        raise NotImplementedError("Resize with cubic or antialiasing weights")
    for axis, n, out, scale in zip(axes, lengths, outs, given.tolist(), strict=True):
        if scale != 1:
            position = np.clip(_COORDINATES[rule](np.arange(out), n, out, scale), 0, n - 1)
            below = np.floor(position).astype(int)[:, None]
            above, share = np.minimum(below + 1, n - 1), position[:, None] - below
            matrix = (below == np.arange(n)) * (1 - share) + (above == np.arange(n)) * share
            x = np.moveaxis(np.tensordot(x, matrix, (axis, 1)), -1, axis)
    return x


def _half_pixel(i: Array, _n: int, _out: int, scale: float) -> Array:
    return (i + 0.5) / scale - 0.5


def _symmetric(i: Array, n: int, out: int, scale: float) -> Array:
    return n / 2 * (1 - out / (scale * n)) + (i + 0.5) / scale - 0.5


def _align_corners(i: Array, n: int, out: int, _scale: float) -> Array:
    return i * (n - 1) / max(1, out - 1)


def _asymmetric(i: Array, _n: int, _out: int, scale: float) -> Array:
    return i / scale


_COORDINATES = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _half_pixel,  # its rule for a single element: the clipping gives it too
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
}
"""Where element i of an axis resized from n to out elements lies in the input."""


OPERATORS: Mapping[tuple[str, str], Callable[..., Array]] = {
    ("", "Erf"): _erf,
    ("", "Gelu"): _gelu,
    (ORT, "Gelu"): _gelu,
    ("", "AveragePool"): _average_pool,
    ("", "DequantizeLinear"): _dequantize,
    ("", "Resize"): _resize,
}
"""(domain, type) -> implementation(attributes, *inputs) of an operator with one output.

NotImplementedError says that this case of the operator is left to others."""


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
