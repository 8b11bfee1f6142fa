"""What bounds the rounding error of each operator, by the operator's name.

A sum of products is off by at most gamma(n) times the sum of their magnitudes, which the operator
itself gives for the magnitudes of its operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from dwr_rewrite.equivalence.tolerance import Rounding

Sums = Sequence[tuple[int, float]]
"""For each floating-point result: how many products are added, and their bound's gamma."""

EXACT = frozenset(
    {
        "_to_copy", "_unsafe_index", "_unsafe_view", "abs", "adaptive_max_pool2d",
        "adaptive_max_pool3d", "amax", "amin", "arange", "cat", "ceil", "channel_shuffle", "clamp",
        "clamp_max", "clamp_min", "clone", "constant_pad_nd", "copy", "cummax", "cummin",
        "diag_embed", "embedding", "empty", "empty_like", "empty_strided", "eye", "fill", "flip",
        "floor", "floor_divide", "fmax", "fmin", "full", "full_like", "gather", "hardtanh",
        "hardtanh_backward", "im2col", "index", "index_copy", "index_fill", "index_select",
        "kthvalue", "lift_fresh_copy", "masked_fill", "masked_scatter", "masked_select", "max",
        "max_pool2d_with_indices", "max_pool3d_with_indices", "maximum", "median", "min",
        "minimum", "nan_to_num", "neg", "new_empty", "new_empty_strided", "new_full", "new_ones",
        "new_zeros", "ones", "ones_like", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d",
        "reflection_pad2d", "reflection_pad3d", "relu", "repeat", "replication_pad1d",
        "replication_pad2d", "replication_pad3d", "roll", "round", "scalar_tensor", "scatter",
        "select_backward", "select_scatter", "sgn", "sign", "slice_backward", "slice_scatter",
        "sort", "stack", "take", "threshold", "threshold_backward", "topk", "tril", "triu", "trunc",
        "unsafe_split", "unsafe_split_with_sizes", "upsample_nearest1d", "upsample_nearest2d",
        "upsample_nearest3d", "where", "zero", "zeros", "zeros_like",
    }
)  # fmt: skip
"""They choose or move values, or give whole numbers. Operators that return views need no entry.

A cast to a shorter type rounds, but a :class:`Rounding` is that of the model's shortest type: what
is cast was moved by as much when it was made."""

COMPOUND = frozenset(
    {
        "_batch_norm_with_update", "_fused_rms_norm", "_fused_rms_norm_backward", "_log_softmax",
        "_log_softmax_backward_data", "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training", "_safe_softmax", "_softmax",
        "_softmax_backward_data", "_weight_norm_interface", "batch_norm_backward",
        "linalg_vector_norm", "logsumexp", "mse_loss", "native_batch_norm",
        "native_batch_norm_backward", "native_group_norm", "native_group_norm_backward",
        "native_layer_norm", "native_layer_norm_backward", "std", "std_mean", "var", "var_mean",
    }
)  # fmt: skip
"""They add, and then do more with the sums: their steps round one by one."""


def sums(name: str, args: Sequence[Any], rounding: Rounding) -> Sums | None:
    """What an operator adds up; None where it is no sum of products.

    Args:
        name: without the overload, and without the underscore of an operator in place.
        args: its arguments.
        rounding: of a sum.
    """
    if name == "convolution":
        return [_convolution(args, rounding)]
    if name == "convolution_backward":
        return _convolution_backward(args, rounding)
    terms = TERMS.get(name)
    if terms is None:
        return None
    count = terms(args)
    return [(count, rounding.gamma(count))]


def _convolution(args: Sequence[Any], rounding: Rounding) -> tuple[int, float]:
    x, weight, bias, stride, _, dilation, _, _, groups = args
    kernel = weight.shape[2:]
    terms = x.shape[1] // groups * prod(kernel) + (bias is not None)
    return terms, rounding.convolution(terms, kernel, stride, dilation)


def _convolution_backward(args: Sequence[Any], rounding: Rounding) -> Sums:
    """Of the gradients of the input, the weight and the bias."""
    gradient, x, weight, _, stride, _, dilation, transposed, _, groups, _ = args
    kernel = weight.shape[2:]
    positions = [tensor.shape[0] * prod(tensor.shape[2:]) for tensor in (gradient, x)]
    terms = (
        gradient.shape[1] // groups * prod(kernel),
        positions[1] if transposed else positions[0],
        positions[0],
    )
    gammas = [rounding.convolution(n, kernel, stride, dilation) for n in terms[:2]]
    return list(zip(terms, (*gammas, rounding.gamma(terms[2])), strict=True))


def _ratio(args: Sequence[Any]) -> int:
    """Elements that a reduction puts into one."""
    shape, axes = args[0].shape, args[1] if len(args) > 1 else None
    if not shape or axes is None or axes == []:
        return prod(shape)
    return prod(shape[axis] for axis in ([axes] if isinstance(axes, int) else axes))


def _adaptive(args: Sequence[Any]) -> int:
    x, sizes = args[:2]
    lengths = x.shape[x.dim() - len(sizes) :]
    return prod(-(-length // size) + 1 for length, size in zip(lengths, sizes, strict=True))


def _window(args: Sequence[Any]) -> int:
    return prod(args[1] * (args[0].dim() - 2 if len(args[1]) == 1 else 1))


TERMS: Mapping[str, Callable[[Sequence[Any]], int]] = {
    "mm": lambda args: args[0].shape[1],
    "bmm": lambda args: args[0].shape[2],
    "mv": lambda args: args[0].shape[1],
    "dot": lambda args: args[0].shape[0],
    "addmm": lambda args: args[1].shape[1] + 1,
    "addmv": lambda args: args[1].shape[1] + 1,
    "baddbmm": lambda args: args[1].shape[2] + 1,
    "sum": _ratio,
    "mean": _ratio,
    "cumsum": _ratio,
    "avg_pool2d": _window,
    "avg_pool3d": _window,
    "_adaptive_avg_pool2d": _adaptive,
    "_adaptive_avg_pool3d": _adaptive,
    "upsample_linear1d": lambda _: 2,
    "upsample_bilinear2d": lambda _: 4,
    "upsample_trilinear3d": lambda _: 8,
}
"""Products in one sum, for operators that are linear in each operand; weights count as products."""
