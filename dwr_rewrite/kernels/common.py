"""What the kernels share: static tap arithmetic, register tiles as tuples, the epilogue.

An axis is the tuple (taps, stride, padding, dilation, adjoint), known when a kernel is compiled.
Offsets and outputs are counted from the origin of a box of outputs: output o0, which is a multiple
of the stride if the map is adjoint, and input o0 * stride, or o0 / stride.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def tap(offset, out, axis):
    """The tap with which the input at ``offset`` counts for output ``out``; -1 for none."""
    taps, stride, padding, dilation, adjoint = axis
    reach = out + padding - offset * stride if adjoint else offset + padding - out * stride
    whole = reach % dilation == 0 and 0 <= reach // dilation < taps
    return reach // dilation if whole else -1


@triton.constexpr_function
def first(outputs, axis):
    """The lowest input offset that a box of ``outputs`` may need."""
    taps, stride, padding, dilation, adjoint = axis
    return -((dilation * (taps - 1) - padding) // stride) if adjoint else -padding


@triton.constexpr_function
def last(outputs, axis):
    """The highest one, which counts."""
    taps, stride, padding, dilation, adjoint = axis
    if adjoint:
        return (outputs - 1 + padding) // stride
    return (outputs - 1) * stride + dilation * (taps - 1) - padding


@triton.constexpr_function
def meets(offset, width, outputs, axis):
    """Whether one of ``width`` input offsets counts for some output."""
    return any(
        tap(at, out, axis) >= 0 for at in range(offset, offset + width) for out in range(outputs)
    )


@triton.jit
def put(items, i: tl.constexpr, value):
    """A tuple with ``value`` in place of its item ``i``."""
    return items[:i] + (value,) + items[i + 1 :]


@triton.jit
def split(x):
    """[BC, BP, V] as V tensors [BC, BP], for a power of two from 2 on."""
    V: tl.constexpr = x.shape[2]
    if V == 2:
        a, b = tl.split(x)
        return (a, b)
    else:
        even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], V // 2, 2]))
        evens = split(even)
        odds = split(odd)
        items = ()
        for i in tl.static_range(V // 2):
            items = items + (evens[i], odds[i])
        return items


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
