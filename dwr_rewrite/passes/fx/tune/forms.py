"""A convolution in one of its forms, as calls of what the rewritten model runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from dwr_rewrite.passes.fx.functional import aten, convolve, gradient_of, pack, pad
from dwr_rewrite.passes.fx.geometry import Form, Forms, Geometry, around
from dwr_rewrite.passes.fx.tune.clock import Turn
from dwr_rewrite.passes.fx.tune.operands import Operands
from dwr_rewrite.spec import Pads
from dwr_rewrite.workload import Workload

T = TypeVar("T")


def call_of(workload: Workload, form: Form, given: Operands, weights: int = 1) -> Turn:
    """A convolution in a form, on the operands of a turn.

    Args:
        workload: the convolution.
        form: a group width, of which 1 is the depthwise convolution itself, or a kernel.
        given: its operands.
        weights: how many copies of a stored weight take turns.
    """
    first, geometry = geometry_of(workload)
    weight, bias = given.weight, given.bias
    if workload.direction != "forward":
        which, sources = int(workload.direction == "grad_weight"), [pad(x, first) for x in given.x]
        return lambda i: gradient_of(
            turn(given.gradient, i), turn(sources, i), weight, geometry, form, which
        )
    if isinstance(form, str) or not workload.stored:
        forms = Forms(forward=form)
        return lambda i: convolve(pad(turn(given.x, i), first), weight, bias, geometry, forms)
    stored = [pack(weight, geometry.packing(form)).clone() for _ in range(weights)]
    arguments = geometry.arguments(form)
    return lambda i: aten.convolution(
        pad(turn(given.x, i), first), turn(stored, i), bias, *arguments
    )


def geometry_of(workload: Workload) -> tuple[Pads, Geometry]:
    """What is padded before, and the geometry of the convolution after that."""
    spec = workload.spec
    assert not isinstance(spec.padding, str)  # a workload has numbers
    first, padding = around(spec.padding)
    return first, Geometry(
        spec.channels, spec.kernel, spec.multiplier, spec.stride, padding, spec.dilation,
        spec.transposed, spec.output_padding if spec.transposed else (),
    )  # fmt: skip


def turn(items: Sequence[T], i: int) -> T:
    """The item whose turn it is."""
    return items[i % len(items)]
