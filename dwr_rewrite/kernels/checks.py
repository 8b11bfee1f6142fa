"""What the operators refuse, and the problem that their arguments describe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwr_rewrite.errors import DwrError
from dwr_rewrite.kernels.problem import ACTIVATIONS, Problem, triple

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def known(condition: Any) -> bool:
    """Whether a condition on sizes is certain. Of sizes that are being traced it asks no guard."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)


def problem(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    adjoint: bool,
    reduce: bool,
) -> Problem:
    """The problem of ``dwr::depthwise``, whose arguments these are.

    Args:
        shape: of the input, [N, channels, spatial...].
        weight_shape: [C*m, 1, k...] or [C, m, k...].
        size: of the output, one length for each spatial axis.
        stride: step along each.
        padding: in front of each; a negative amount crops.
        dilation: distance between taps along each.
        groups: C.
        adjoint: the taps scatter.
        reduce: the m channels of a group are summed.

    Raises:
        DwrError: they describe none.
    """
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        raise DwrError(f"an input of shape {_text(shape)}: [N, C, 1 to 3 spatial axes] expected")
    _check_axes(rank, size=size, stride=stride, padding=padding, dilation=dilation)
    multiplier = _multiplier(rank, weight_shape, groups)
    found = Problem(
        groups, multiplier, triple(weight_shape[2:]), triple(stride), triple(padding, 0),
        triple(dilation), adjoint, reduce,
    )  # fmt: skip
    if shape[1] != found.in_channels:
        raise DwrError(f"the input has {shape[1]} channels; {found.in_channels} expected with "
                       f"groups={groups} and a weight of shape {_text(weight_shape)}")  # fmt: skip
    for length in (*shape[2:], *size):
        if known(length < 1):
            raise DwrError(f"input {_text(shape)} and output size {_text(size)}: every spatial "
                           f"length must be at least 1; is the kernel longer than the padded "
                           f"input?")  # fmt: skip
    return found


def _check_axes(rank: int, **axes: Sequence[int]) -> None:
    for name, values in axes.items():
        if len(values) != rank:
            raise DwrError(f"{name} {_text(values)} has {len(values)} entries; {rank} expected, "
                           f"one for each spatial axis")  # fmt: skip
        if name in ("stride", "dilation") and min(values) < 1:
            raise DwrError(f"{name} {_text(values)} must be at least 1 everywhere")


def _multiplier(rank: int, weight_shape: Sequence[int], groups: int) -> int:
    """Filters of each group; checks the weight's shape."""
    if len(weight_shape) == rank + 2 and groups > 0 and not known(min(weight_shape) < 1):
        filters = weight_shape[0] * weight_shape[1]
        if filters % groups == 0 and (weight_shape[1] == 1 or weight_shape[0] == groups):
            return filters // groups
    raise DwrError(f"a weight of shape {_text(weight_shape)} with groups={groups}: [C*m, 1, k...] "
                   f"or [C, m, k...] expected, with C = groups and {rank} kernel axes")  # fmt: skip


def activation(name: str) -> None:
    """Checks the name of an activation.

    Raises:
        DwrError: there is none of this name.
    """
    if name not in ACTIVATIONS:
        raise DwrError(f"activation {name!r} is none of {', '.join(ACTIVATIONS)}")


def operands(x: Tensor, **others: Tensor) -> None:
    """Checks that tensors go together: one floating type, one device.

    Raises:
        DwrError: they do not.
    """
    if x.dtype not in FLOATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise DwrError(f"the input is {x.dtype}; one of {names} expected")
    for name, other in others.items():
        if other.device != x.device:
            raise DwrError(f"the {name} is on {other.device} and the input on {x.device}; move one")
        if other.dtype != x.dtype:
            raise DwrError(f"the {name} is {other.dtype} and the input {x.dtype}; cast one, or use "
                           f"torch.autocast")  # fmt: skip


def gradient(x: Tensor, gradient: Tensor, problem: Problem) -> None:
    """Checks that ``gradient`` is one of an output of ``problem`` for the input ``x``.

    Raises:
        DwrError: its batch or its channels are not.
    """
    expected = (x.shape[0], problem.out_channels)
    if tuple(gradient.shape[:2]) != expected or gradient.dim() != x.dim():
        raise DwrError(f"a gradient of shape {_text(gradient.shape)}; [{expected[0]}, "
                       f"{expected[1]}, {x.dim() - 2} spatial axes] expected")  # fmt: skip


def per_channel(x: Tensor, channels: int, **vectors: Tensor | None) -> None:
    """Checks a scale and a bias, which may be of any floating type: it is widened anyway.

    Raises:
        DwrError: one is not [channels] of a floating type on the input's device.
    """
    for name, vector in vectors.items():
        if vector is None:
            continue
        if vector.device != x.device or vector.dtype not in FLOATS:
            raise DwrError(f"the {name} is {vector.dtype} on {vector.device}; a floating type on "
                           f"{x.device} expected")  # fmt: skip
        if vector.dim() != 1 or vector.shape[0] != channels:
            raise DwrError(f"the {name} has shape {_text(vector.shape)}; [{channels}] expected, "
                           f"one for each output channel")  # fmt: skip


def _text(values: Sequence[int]) -> str:
    return f"[{', '.join(map(str, values))}]"
