"""What the kernels share: static tap arithmetic, register tiles as tuples, the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def tap(offset, out, kernel, stride, padding, dilation, adjoint):
    """The tap with which the input at ``offset`` counts for output ``out``; -1 for none.

    Both are counted from a tile's origin: output o0 (a multiple of the stride, if ``adjoint``) and
    input o0 * stride, or o0 / stride.
    """
    reach = out + padding - offset * stride if adjoint else offset + padding - out * stride
    whole = reach % dilation == 0 and 0 <= reach // dilation < kernel
    return reach // dilation if whole else -1


@triton.constexpr_function
def first(outputs, kernel, stride, padding, dilation, adjoint):
    """The lowest input offset that a tile of ``outputs`` may need."""
    return -((dilation * (kernel - 1) - padding) // stride) if adjoint else -padding


@triton.constexpr_function
def last(outputs, kernel, stride, padding, dilation, adjoint):
    """The highest one, which counts."""
    if adjoint:
        return (outputs - 1 + padding) // stride
    return (outputs - 1) * stride + dilation * (kernel - 1) - padding


@triton.jit
def put(items, i: tl.constexpr, value):
    """A tuple with ``value`` in place of its item ``i``."""
    return items[:i] + (value,) + items[i + 1 :]


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """The activation of an epilogue, on the accumulator's type."""
    if ACTIVATION == "relu":
        # not maximum, which would turn NaN into 0
        y = tl.where(y < 0, 0.0, y)
    elif ACTIVATION == "relu6":
        y = tl.where(y < 0, 0.0, tl.where(y > 6, 6.0, y))
    elif ACTIVATION == "silu":
        y = y / (1 + tl.exp(-y))
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(u) = 1 - 2 / (exp(2u) + 1), which neither overflows nor cancels here
        u = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y * (1 - 1 / (tl.exp(2 * u) + 1))
    elif ACTIVATION == "hardswish":
        y = y * tl.where(y < -3, 0.0, tl.where(y > 3, 6.0, y + 3)) / 6
    return y
